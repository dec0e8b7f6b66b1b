package proxy

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

func env(kv ...string) func(string) string {
	return func(name string) string {
		for i := 0; i+1 < len(kv); i += 2 {
			if kv[i] == name {
				return kv[i+1]
			}
		}
		return ""
	}
}

func TestParse(t *testing.T) {
	base := Config{Role: plan.Sidecar, Admin: "127.0.0.1:15000", AccessLog: "off", Telemetry: "on", DrainTimeout: 30 * time.Second, LogFormat: "text"}
	base.Limits.flags(flag.NewFlagSet("", flag.ContinueOnError))
	for _, tc := range []struct {
		args []string
		env  []string
		edit func(*Config)
	}{
		{[]string{"--plan", "p.json"}, nil, func(c *Config) { c.Plan = "p.json" }},
		{[]string{"--plan", "p.json", "--same-user"}, nil, func(c *Config) { c.Plan, c.SameUser = "p.json", true }},
		{[]string{"--plan", "p.json"}, []string{"MALHA_PROXY_ACCESS_LOG", "stdout", "MALHA_PROXY_PLAN", "other"}, func(c *Config) { c.Plan, c.AccessLog = "p.json", "stdout" }},
		{nil, []string{"MALHA_PROXY_PLAN", "p", "MALHA_PROXY_LOG_LEVEL", "debug", "MALHA_PROXY_CONCURRENCY", "4"},
			func(c *Config) { c.Plan, c.LogLevel, c.Concurrency = "p", slog.LevelDebug, 4 }},
		{[]string{"--control", "127.0.0.1:15012", "--roots", "r", "--token", "t", "--node", "reviews-v1", "--role", "gateway", "--state", "s", "--admin", "", "--drain-timeout", "1s", "--log-format", "json"}, nil,
			func(c *Config) {
				*c = Config{Control: "127.0.0.1:15012", Roots: "r", Token: "t", Node: ident.Name{Namespace: "default", Name: "reviews-v1"}, Role: plan.Gateway, State: "s",
					AccessLog: "off", Telemetry: "on", DrainTimeout: time.Second, LogFormat: "json", Limits: c.Limits}
			}},
	} {
		want := base
		tc.edit(&want)
		got, err := Parse(tc.args, env(tc.env...), io.Discard)
		if err != nil {
			t.Errorf("%v: %v", tc.args, err)
			continue
		}
		if d := cmp.Diff(&want, got); d != "" {
			t.Errorf("%v (-want +got):\n%s", tc.args, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	control := []string{"--control", "c:1", "--roots", "r", "--token", "t", "--node", "n"}
	for want, args := range map[string][]string{
		"nothing to run from":    nil,
		"exclude each other":     append([]string{"--plan", "p"}, control...),
		"--identity goes with":   append([]string{"--identity", "d"}, control...),
		"needs --node":           {"--control", "c:1"},
		"want HOST:PORT":         {"--plan", "p", "--admin", "15000"},
		"--role":                 append([]string{"--role", "waypoint"}, control...),
		"--log-format":           {"--plan", "p", "--log-format", "xml"},
		"--log-level":            {"--plan", "p", "--log-level", "loud"},
		"--concurrency":          {"--plan", "p", "--concurrency", "-1"},
		"--drain-timeout":        {"--plan", "p", "--drain-timeout", "-1s"},
		"--telemetry":            {"--plan", "p", "--telemetry", "some"},
		"--access-log":           {"--plan", "p", "--access-log", ""},
		"--node":                 append(control, "--node", "a/b/c"),
		"unexpected argument":    {"--plan", "p", "x"},
		"see malha-proxy --help": {"--nonsense"},
		"--max-streams 0: want":  {"--plan", "p", "--max-streams", "0"},
		"--stream-window 1":      {"--plan", "p", "--stream-window", "1"},
		"--head-timeout 0s":      {"--plan", "p", "--head-timeout", "0"},
		"--min-body-rate -2":     {"--plan", "p", "--min-body-rate", "-2"},
	} {
		if _, err := Parse(args, env(), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one about %q", args, err, want)
		}
	}
	if _, err := Parse(nil, env("MALHA_PROXY_CONCURRENCY", "many"), io.Discard); err == nil || !strings.Contains(err.Error(), "MALHA_PROXY_CONCURRENCY") {
		t.Errorf("error %v does not name the variable", err)
	}
}

func TestHelpHasExamples(t *testing.T) {
	var out strings.Builder
	if _, err := Parse([]string{"--help"}, env(), &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("error %v", err)
	}
	for _, want := range []string{"malha-proxy --plan plan.json", "--drain-timeout", "HOST:PORT", "SIGTERM", "MALHA_PROXY_"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help does not have %q:\n%s", want, out.String())
		}
	}
}

func TestReadPlan(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct{ text, want string }{
		"good.json":    {`{"node":{"name":{"name":"a"},"role":"sidecar","identity":{},"workload":{}},"listeners":[{}]}`, ""},
		"idle.json":    {`{"node":{"name":{"name":"a"},"role":"sidecar","identity":{},"workload":{}}}`, "no listeners"},
		"nobody.json":  {`{}`, "whose it is"},
		"null.json":    {`null`, "whose it is"},
		"empty.json":   {``, "it is empty"},
		"unknown.json": {`{"node":{},"policys":[]}`, "unknown field"},
		"twice.json":   {`{"node":{}} {}`, "something follows"},
		"broken.json":  {`{`, "can't be used"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readPlan(t.Context(), path)
		if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := readPlan(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	// Pipes: one without a writer, and one whose writer says nothing.
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readPlan(t.Context(), pipe); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("a pipe without a writer: %v", err)
	}
	writer, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := readPlan(ctx, pipe); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a pipe whose writer says nothing: %v", err)
	}
	if err := regular(pipe, filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), pipe+" is not a file") {
		t.Errorf("%v", err)
	}
	if _, err := readIdentity(dir, time.Now()); err == nil || !strings.Contains(err.Error(), "cert.pem") {
		t.Errorf("%v", err)
	}
}

func TestNeedsIdentity(t *testing.T) {
	id := ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "b"}
	endpoint := func(c plan.Cluster, e plan.Endpoint) *plan.Plan {
		c.Name = "c"
		return &plan.Plan{Clusters: []plan.Cluster{c}, Endpoints: []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{e}}}}
	}
	for name, tc := range map[string]struct {
		p    *plan.Plan
		want string
	}{
		"nothing":    {&plan.Plan{}, ""},
		"strict":     {&plan.Plan{Listeners: []plan.Listener{{Name: "in", Direction: plan.Inbound, TLS: plan.TLSStrict}}}, "listener in"},
		"permissive": {&plan.Plan{Listeners: []plan.Listener{{Name: "in", Direction: plan.Inbound, TLS: plan.TLSPermissive}}}, ""},
		"mutual":     {endpoint(plan.Cluster{TLS: plan.TLSMutual}, plan.Endpoint{}), "cluster c"},
		"mesh":       {endpoint(plan.Cluster{}, plan.Endpoint{Identity: id}), id.URI()},
		"edge":       {&plan.Plan{Listeners: []plan.Listener{{Name: "edge", ServerNames: []plan.ServerName{{Names: []string{"a"}, TLS: &plan.ServerTLS{Mode: plan.ServeMesh}}}}}}, "listener edge"},
		"mesh, off":  {endpoint(plan.Cluster{TLS: plan.TLSOff}, plan.Endpoint{Identity: id}), ""},
		"plaintext":  {endpoint(plan.Cluster{}, plan.Endpoint{Identity: id, Plaintext: true}), ""},
		"outside":    {endpoint(plan.Cluster{}, plan.Endpoint{}), ""},
	} {
		p, err := packed.Of(tc.p)
		if err != nil {
			t.Fatal(err)
		}
		if got := needsIdentity(p); !strings.Contains(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%s: %q", name, got)
		}
	}
}
