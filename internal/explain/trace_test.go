package explain_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// TestEveryFlagIsExplained finds response flags that the proxies write and that nobody explains.
func TestEveryFlagIsExplained(t *testing.T) {
	n := 0
	for bit := range 32 {
		name := telemetry.Flags(1 << bit).String()
		if name == "-" {
			continue
		}
		n++
		for _, f := range explain.Flags(name) {
			if f.Name != name || f.Meaning == "" {
				t.Errorf("%s is not explained", name)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d flags were looked at", n)
	}
	if f := explain.Flags("-"); f != nil {
		t.Errorf("no flags are explained as %v", f)
	}
}

func TestTrace(t *testing.T) {
	m := offline(t, filepath.Join("testdata", "shop.yaml"))
	client, web := ident.Name{Namespace: "default", Name: "client"}, ident.Name{Namespace: "default", Name: "web-v1"}
	name, err := m.Resolve("client")
	if err != nil {
		t.Fatal(err)
	}
	w, err := m.Request(name, explain.Request{URL: "http://web/named"})
	if err != nil {
		t.Fatal(err)
	}
	endpoint := w.Branches[0].Endpoints[0].Address
	line := func(id, local, upstream, flags string, millis string) string {
		return `{"start_time":"2026-01-02T03:04:05.006Z","method":"GET","path":"/named","protocol":"HTTP/1.1","response_code":200,"response_flags":"` + flags +
			`","duration":` + millis + `,"upstream_service_time":null,"request_id":"` + id + `","authority":"web","upstream_host":` + upstream + `,"downstream_local_address":"` + local + `"}`
	}
	tr := m.Trace("one", []explain.Written{
		{Node: web, Lines: []string{"not a log line", line("one", endpoint, "null", "UAEX", "4"), line("another", endpoint, "null", "-", "1")}},
		{Node: client, Lines: []string{line("other-one", w.Listener.Bind, "null", "-", "9"), line("one", w.Listener.Bind, `"`+endpoint+`"`, "UF,URX", "4"), `{"start_time":"broken one`}},
	})
	if tr.Logged != 5 {
		t.Errorf("%d lines were looked at, want 5", tr.Logged)
	}
	var got []string
	for _, h := range tr.Hops {
		var flags []string
		for _, f := range h.Flags {
			flags = append(flags, f.Name)
		}
		got = append(got, h.Node.String()+" "+h.Listener+" "+h.Workload.String()+" "+strings.Join(flags, "+"))
	}
	want := []string{"default/client forward default/web-v1 UF+URX", "default/web-v1 inbound|8000 / UAEX"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A listener on every address is none of the addresses that its connections were for.
func TestTraceThroughAWildcard(t *testing.T) {
	gw, app := ident.Name{Namespace: "default", Name: "z-gateway"}, ident.Name{Namespace: "default", Name: "app"}
	m, err := explain.New([]*plan.Plan{
		{Node: plan.Node{Name: gw, Role: plan.Gateway}, Listeners: []plan.Listener{
			{Name: "edge|8081", Bind: "0.0.0.0:8081", Port: 81, Direction: plan.Edge}, {Name: "edge|8080", Bind: "0.0.0.0:8080", Port: 80, Direction: plan.Edge},
		}},
		{Node: plan.Node{Name: app, Role: plan.Sidecar}, Listeners: []plan.Listener{{Name: "inbound|80", Bind: "127.0.0.1:9000", Port: 80, Direction: plan.Inbound}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	line := func(local, upstream, direction string) string {
		return `{"start_time":"2026-01-02T03:04:05.006Z","duration":1,"request_id":"one","upstream_host":` + upstream + `,"downstream_local_address":"` + local + `","direction":"` + direction + `"}`
	}
	tr := m.Trace("one", []explain.Written{
		{Node: app, Lines: []string{line("127.0.0.1:9000", `"127.0.0.1:7000"`, "inbound")}}, {Node: gw, Lines: []string{line("192.0.2.1:8080", `"127.0.0.1:9000"`, "edge")}},
	})
	var got []string
	for _, h := range tr.Hops {
		got = append(got, h.Node.Name+" "+h.Listener+" "+string(h.Direction))
	}
	if d := cmp.Diff([]string{"z-gateway edge|8080 edge", "app inbound|80 inbound"}, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
