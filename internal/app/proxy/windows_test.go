package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/malha-mesh/malha/internal/probe"
	"github.com/malha-mesh/malha/internal/testport"
)

// TestWindows is what the ports for everybody show: readiness, the application's health, metrics, and no command.
func TestWindows(t *testing.T) {
	var sick atomic.Bool
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sick.Load() || r.URL.Path != "/well" {
			w.WriteHeader(500)
		}
	}))
	defer app.Close()
	path := probe.Path("app", probe.Ready)
	set := probe.Set{path: {HTTP: &probe.HTTP{Port: app.Listener.Addr().(*net.TCPAddr).Port, Path: "/well"}}}
	value, err := set.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "plan.json")
	writePlan(t, file, reviewsPlan(testport.Reserve(t), app.Listener.Addr().String(), "default"))
	c, err := Parse([]string{"--plan", file, "--admin", "", "--health", "127.0.0.1:0", "--metrics", "127.0.0.1:0"}, env(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var stderr output
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Config: c, Version: "test", Getenv: env(probe.Env, value, "GOGC", "100", "GOMAXPROCS", "2"), Stdout: io.Discard, Stderr: &stderr})
	}()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	addr := func(name string) (out string) {
		line := regexp.MustCompile(`port is open" port=` + name + ` addr=(\S+)`)
		wait(t, name, func() bool {
			if m := line.FindStringSubmatch(stderr.String()); m != nil {
				out = m[1]
			}
			return out != ""
		})
		return out
	}
	health, metrics := addr("health"), addr("metrics")
	if err := Wait(t.Context(), []string{"--port", strings.TrimPrefix(health, "127.0.0.1:"), "--for", "1m"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		url    string
		status int
	}{
		{health + "/healthz/ready", 200}, {health + path, 200}, {health + "/app-health/app/livez", 404}, {health + "/metrics", 404},
		{health + "/config_dump", 404}, {health + "/quitquitquit", 404},
		{metrics + "/stats/prometheus", 200}, {metrics + "/healthz/ready", 200}, {metrics + path, 404}, {metrics + "/config_dump", 404},
		{metrics + "/quitquitquit", 404}, {metrics + "/drain", 404}, {metrics + "/logging", 404}, {metrics + "/certs", 404},
	} {
		if status, body, err := get("http://" + tc.url); err != nil || status != tc.status {
			t.Errorf("%s: %d %s %v, want %d", tc.url, status, body, err, tc.status)
		}
	}
	sick.Store(true)
	if status, body, err := get("http://" + health + path); err != nil || status != 503 || !strings.Contains(body, "the application answered 500") {
		t.Errorf("a sick application: %d %s %v", status, body, err)
	}
}

func TestWait(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--port", fmt.Sprint(testport.Reserve(t)), "--for", "30ms"}, "is not ready after 30ms"},
		{[]string{"now"}, "unexpected argument"},
		{[]string{"--fro", "1s"}, "see malha-proxy wait --help"},
	} {
		if err := Wait(t.Context(), tc.args, io.Discard); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v", tc.args, err)
		}
	}
}

// TestBrokenProbes is that a proxy does not start with probes that nobody could have written.
func TestBrokenProbes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plan.json")
	writePlan(t, file, reviewsPlan(testport.Reserve(t), "127.0.0.1:1", "default"))
	c, err := Parse([]string{"--plan", file, "--admin", ""}, env(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Options{Config: c, Getenv: env(probe.Env, "{"), Stdout: io.Discard, Stderr: io.Discard}); err == nil || !strings.Contains(err.Error(), probe.Env) {
		t.Errorf("got %v", err)
	}
}
