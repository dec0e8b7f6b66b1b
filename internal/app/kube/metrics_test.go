package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/admit"
	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/inject"
)

// TestAnswers counts what the webhooks really say, by the names that dashboards of Istio know.
func TestAnswers(t *testing.T) {
	answers := NewAnswers()
	config := inject.Defaults("malha-proxy:v1")
	h := admit.New(admit.Options{
		Inject: func() *inject.Config { return config }, Counted: answers.Count,
		Namespace: func(_ context.Context, name string) (inject.Namespace, error) {
			return inject.Namespace{Name: name, Labels: map[string]string{inject.LabelInject: "enabled"}}, nil
		},
	})
	ask := func(path, kind, object string) {
		body := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"CREATE","namespace":"shop","kind":{"group":"","version":"v1","kind":%q},"object":%s}}`, kind, object)
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	pod := func(meta, spec string) string {
		return fmt.Sprintf(`{"metadata":{"name":"web"%s},"spec":{"containers":[{"name":"web"}]%s}}`, meta, spec)
	}
	ask("/inject", "Pod", pod("", ""))
	ask("/inject", "Pod", pod("", ""))
	ask("/inject", "Pod", pod("", `,"hostNetwork":true`))
	ask("/inject", "Pod", pod(`,"labels":{"malha.dev/inject":"disabled"}`, ""))
	ask("/inject", "Pod", pod(`,"annotations":{"malha.dev/dns":"maybe"}`, ""))
	ask("/inject", "Pod", "7")
	ask("/inject", "Service", "{}") // none of the injector's business
	const object = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"web","namespace":"shop"},"spec":{"hosts":["web"],%s}}`
	ask("/validate", "VirtualService", fmt.Sprintf(object, `"http":[{"route":[{"destination":{"host":"web"}}]}]`))
	ask("/validate", "VirtualService", fmt.Sprintf(object, `"htpt":1`))
	ask("/validate", "VirtualService", "7")
	e := &exposition{}
	answers.write(e)
	for _, line := range []string{
		"sidecar_injection_requests_total 6", "sidecar_injection_success_total 2", "sidecar_injection_failure_total 2", "sidecar_injection_skip_total 2",
		"galley_validation_passed 1", "galley_validation_failed 1", "galley_validation_http_error 1",
		`malha_webhook_answers_total{webhook="inject",outcome="host-network"} 1`, `malha_webhook_answers_total{webhook="inject",outcome="not-a-new-pod"} 1`,
		`sidecar_injection_time_seconds_bucket{le="+Inf"} 7`, "sidecar_injection_time_seconds_count 7",
	} {
		if !strings.Contains(e.String(), line+"\n") {
			t.Errorf("no %s in:\n%s", line, e)
		}
	}
	wellFormed(t, e.String())
}

var sample = regexp.MustCompile(`^([a-z_]+)(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [-+0-9.eInf]+$`)

// wellFormed holds a text to the format: each family is named once, with what it is, before its samples.
func wellFormed(t *testing.T, text string) {
	t.Helper()
	families, now := map[string]bool{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if help, ok := strings.CutPrefix(line, "# HELP "); ok {
			if now, _, _ = strings.Cut(help, " "); families[now] {
				t.Errorf("%s stands twice", now)
			}
			families[now] = true
			continue
		}
		if strings.HasPrefix(line, "# TYPE "+now+" ") {
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil || m[1] != now && m[1] != now+"_bucket" && m[1] != now+"_sum" && m[1] != now+"_count" {
			t.Errorf("in %s: %q", now, line)
		}
	}
}

func TestHistogram(t *testing.T) {
	e := &exposition{}
	e.histogram("took", "Time.", []time.Duration{100 * time.Millisecond, time.Second}, []uint64{1, 3}, 5*time.Second, 2)
	want := "# HELP took Time.\n# TYPE took histogram\ntook_bucket{le=\"0.1\"} 1\ntook_bucket{le=\"1\"} 3\ntook_bucket{le=\"+Inf\"} 3\ntook_sum 5\ntook_count 3\n"
	if e.String() != want {
		t.Errorf("got\n%s", e)
	}
}

func TestMetricsAreWellFormed(t *testing.T) {
	clients := Clients{Kubernetes: nil}
	s, err := Open(clients, Options{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	metrics := func() string {
		w := httptest.NewRecorder()
		s.metrics(w, nil)
		wellFormed(t, w.Body.String())
		return w.Body.String()
	}
	if strings.Contains(metrics(), "pilot_xds") {
		t.Error("proxies are counted before there is anything that serves them")
	}
	plane, err := control.Open(control.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plane.Close()
	s.plane.Store(plane)
	if text := metrics(); !strings.Contains(text, "\npilot_xds{version=\"v1\"} 0\n") || !strings.Contains(text, "\npilot_proxy_convergence_time_count 0\n") {
		t.Error(text)
	}
}
