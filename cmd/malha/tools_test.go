package main

import (
	"net/http"
	"strings"
	"testing"
)

// TestToolsAskARunningMesh asks a mesh that runs: explain, a request id, analyze and diff.
func TestToolsAskARunningMesh(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.standard()
	m.up("--access-log")
	m.write("rule.yaml", rule("v2"))
	contains := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	}
	m.eventually("the rule is in force", func() bool {
		return strings.Contains(m.must("explain", "--from", "web-1", "http://back/"), "100 %      default/back-v2 answers (subset v2)")
	})
	contains(m.must("explain", "--from", "web-1", "http://back/"), "VirtualService/default/back http[0]", "rule.yaml:6", "mutual TLS with spiffe://cluster.local/ns/default/sa/back")
	contains(m.must("explain", "--from", "gateway", "http://any.example/"), "default/web-1 answers")

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.gateway()+"/call?url=http://back/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("x-request-id", "asked-about-1")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	m.eventually("the access logs tell of the request", func() bool {
		out, _, code := m.run("", "explain", "asked-about-1")
		return code == 0 && strings.Count(out, "\n  answer ") == 2
	})
	contains(m.must("explain", "asked-about-1"), "istio-system/istio-ingressgateway edge edge|80", "sent to  default/web-1", "default/web-1 inbound inbound|8000")
	m.fails("", []string{`has the request id "another"`}, "explain", "another")

	if out, errs, code := m.run("", "diff", "-f", m.folder); code != 0 {
		t.Errorf("diff with its own folder: %d\n%s%s", code, out, errs)
	}
	m.run(rule("v1"), "apply", "-f", "-")
	out, errs, code := m.run("", "diff", "-f", m.folder)
	if code != 1 {
		t.Errorf("diff after an apply: %d\n%s", code, errs)
	}
	contains(out, "forward[outbound|80|v1|back.default.svc.cluster.local]", "yes → none")

	if out, errs, code := m.run("", "analyze"); code != 0 {
		t.Errorf("analyze: %d\n%s%s", code, out, errs)
	}
	twice := strings.Replace(rule("v1"), "name: back", "name: again", 1)
	m.run(twice, "apply", "-f", "-")
	out, errs, code = m.run("", "analyze", "--fail-on", "warning")
	if code != 2 {
		t.Errorf("analyze with a warning: %d\n%s%s", code, out, errs)
	}
	contains(out, "MALHA0810")
}
