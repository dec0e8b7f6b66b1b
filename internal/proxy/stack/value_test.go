package stack

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// value is a field whose value is made of parts.
func value(name string, parts ...plan.Part) plan.Field {
	return plan.Field{Name: name, Format: &plan.Format{Parts: parts}}
}

func variable(v plan.Variable) plan.Part { return plan.Part{Var: v} }

func TestVariablesInValues(t *testing.T) {
	seen := make(http.Header)
	text := func(s string) plan.Part { return plan.Part{Text: s} }
	req := func(name string) plan.Part { return plan.Part{Var: plan.VarRequest, Name: name} }
	r := newRig(t, setup{
		listener: plan.Listener{Direction: plan.Inbound},
		peer:     ident.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"},
		routes: []plan.Route{{
			Name: "all", Rewrite: &plan.Rewrite{Path: "/new", Authority: "other"},
			Headers: plan.HeaderOps{
				Request: plan.FieldOps{
					Remove: []string{"x-gone"},
					Set: []plan.Field{
						value("x-line", req(":method"), text(" "), req(":path"), text(" "), variable(plan.VarProtocol), text(" "), req(":scheme")),
						value("x-else", plan.Part{Var: plan.VarRequest, Name: "x-none", Else: "x-some"}),
						value("x-cut", plan.Part{Var: plan.VarRequest, Name: "x-some", Max: 3}, text("…")),
						value("x-kept", req("x-none")),
						value("x-was-gone", req("x-gone"), text("!")),
						value("x-spaces", text(" "), req("x-some"), text(" "), req("x-none")),
						value("x-peer", variable(plan.VarPeer)),
						value("x-route", variable(plan.VarRouteName), text("/"), variable(plan.VarCluster)),
						value("x-ip", variable(plan.VarRemoteIP)),
						value("x-remote", variable(plan.VarRemote)),
						value("x-local", variable(plan.VarLocal)),
						value("x-start", plan.Part{Var: plan.VarStartTime, Name: "2006-01-02T15:04:05.000Z"}),
					},
					Add: []plan.Field{value("x-none-added", req("x-none")), value("x-some", req("x-some"), text(" again"))},
				},
				Response: plan.FieldOps{Set: []plan.Field{
					value("x-status", variable(plan.VarResponseCode), text(" "), variable(plan.VarResponseFlags), text(" "), variable(plan.VarResponseDetail)),
					value("x-server", plan.Part{Var: plan.VarResponse, Name: "x-version"}, text(" of "), variable(plan.VarUpstream)),
					value("x-asked", req("x-some")),
				}},
			},
			Forward: to("a"),
		}},
		apps: map[string][]http.HandlerFunc{"a": {func(w http.ResponseWriter, r *http.Request) {
			seen = r.Header.Clone()
			w.Header().Set("X-Version", "7")
			w.WriteHeader(http.StatusTeapot)
		}}},
	})
	resp, _ := r.do("GET", "/old?q=1", "", "x-some: value", "x-kept: as it was", "x-gone: x")
	for name, want := range map[string]string{
		"x-line": "GET /old?q=1 HTTP/1.1 https", "x-else": "value", "x-cut": "val…", "x-kept": "as it was", "x-was-gone": "!", "x-spaces": "value",
		"x-peer": "spiffe://cluster.local/ns/a/sa/b", "x-route": "all/a", "x-none-added": "",
	} {
		if got := seen.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := seen.Values("x-some"); len(got) != 2 || got[1] != "value again" {
		t.Errorf("x-some: %q", got)
	}
	if _, err := netip.ParseAddrPort(seen.Get("x-remote")); err != nil || !strings.HasPrefix(seen.Get("x-remote"), seen.Get("x-ip")+":") {
		t.Errorf("x-remote: %q, x-ip: %q", seen.Get("x-remote"), seen.Get("x-ip"))
	}
	if _, err := netip.ParseAddrPort(seen.Get("x-local")); err != nil {
		t.Error(err)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", seen.Get("x-start")); err != nil {
		t.Error(err)
	}
	if got := resp.Header.Get("x-status"); got != "418 - via_upstream" {
		t.Errorf("x-status: %q", got)
	}
	if got := resp.Header.Get("x-server"); !strings.HasPrefix(got, "7 of 127.0.0.1:") {
		t.Errorf("x-server: %q", got)
	}
	if got := resp.Header.Get("x-asked"); got != "value" {
		t.Errorf("x-asked: %q", got)
	}
}

// Names in a plan may have any bytes, and no message takes them as they are.
func TestNamesInValues(t *testing.T) {
	var seen http.Header
	r := newRig(t, setup{
		routes: []plan.Route{{
			Name: "a\r\nx-other: b\x00\u00e9",
			Headers: plan.HeaderOps{
				Request:  plan.FieldOps{Set: []plan.Field{value("x-route", plan.Part{Text: "<"}, variable(plan.VarRouteName), plan.Part{Text: ">"})}},
				Response: plan.FieldOps{Add: []plan.Field{value("x-start", plan.Part{Var: plan.VarStartTime, Name: "2006\r\nx-other: b"})}},
			},
			Forward: to("a"),
		}},
		apps: map[string][]http.HandlerFunc{"a": {func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Clone() }}},
	})
	resp, _ := r.do("GET", "/", "")
	if got := seen.Get("x-route"); got != "<a??x-other: b?\u00e9>" || seen.Get("x-other") != "" {
		t.Errorf("the program got %q in %q", got, seen)
	}
	if got := resp.Header.Get("x-start"); !strings.HasSuffix(got, "??x-other: b") || resp.Header.Get("x-other") != "" {
		t.Errorf("the client got %q in %q", got, resp.Header)
	}
}

func TestValuesThatCannotBeMade(t *testing.T) {
	for name, f := range map[string]struct {
		plan.Field
		response bool
	}{
		"no parts":                     {value("x"), false},
		"an unknown variable":          {value("x", variable("NEWER")), false},
		"of the response in a request": {value("x", variable(plan.VarResponseCode)), false},
		"a header without a name":      {value("x", variable(plan.VarRequest)), false},
		"a line break":                 {value("x", plan.Part{Text: "a\r\nb: c"}), true},
		"the host":                     {value("host", variable(plan.VarRemoteIP)), false},
		"framing":                      {value("content-length", variable(plan.VarRemotePort)), true},
	} {
		ops := plan.HeaderOps{}
		side := &ops.Request
		if f.response {
			side = &ops.Response
		}
		side.Set = []plan.Field{f.Field}
		if err := checkOps(&ops); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if err := checkOps(&plan.HeaderOps{Request: plan.FieldOps{Add: []plan.Field{{Name: "host", Value: "a"}}}}); err == nil {
		t.Error("a second host was taken")
	}
	if err := checkOps(&plan.HeaderOps{Response: plan.FieldOps{Add: []plan.Field{value("x", variable(plan.VarResponseCode))}}}); err != nil {
		t.Error(err)
	}
}
