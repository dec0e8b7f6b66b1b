package admit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/inject"
)

func options() Options {
	c := inject.Defaults("malha.dev/malha-proxy:v1")
	return Options{
		Inject: func() *inject.Config { return c },
		Namespace: func(_ context.Context, name string) (inject.Namespace, error) {
			switch name {
			case "shop":
				return inject.Namespace{Name: name, Labels: map[string]string{inject.LabelInject: "enabled"}}, nil
			case "outside":
				return inject.Namespace{Name: name}, nil
			case "panic":
				panic("on purpose")
			}
			return inject.Namespace{}, errors.New("it does not exist")
		},
	}
}

// ask sends a review and returns the status, the response, and the text of other answers.
func ask(t *testing.T, h http.Handler, path string, body string, edit func(*http.Request)) (int, *admissionv1.AdmissionResponse, string) {
	t.Helper()
	r := httptest.NewRequest("POST", path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 200 {
		return w.Code, nil, w.Body.String()
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || review.Response == nil || review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" || review.Response.UID != "u1" {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return w.Code, review.Response, ""
}

func review(namespace, kind, operation, object, old string) string {
	group := ""
	if kind != "Pod" {
		group = "networking.istio.io"
	}
	if old == "" {
		old = "null"
	}
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","kind":{"group":%q,"version":"v1","kind":%q},"namespace":%q,"name":"web","operation":%q,"object":%s,"oldObject":%s}}`,
		group, kind, namespace, operation, object, old)
}

const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-"%s},"spec":{"containers":[{"name":"app","image":"a","newField":{"x":1}}]%s}}`

func TestInject(t *testing.T) {
	h := New(options())
	for _, tc := range []struct {
		name, body    string
		allowed       bool
		patch         bool
		message, warn string
	}{
		{"asked", review("shop", "Pod", "CREATE", fmt.Sprintf(pod, "", ""), ""), true, true, "", ""},
		{"not asked", review("outside", "Pod", "CREATE", fmt.Sprintf(pod, "", ""), ""), true, false, "", ""},
		{"host network", review("shop", "Pod", "CREATE", fmt.Sprintf(pod, "", `,"hostNetwork":true`), ""), true, false, "", "is not injected: it has hostNetwork"},
		{"bad annotation", review("shop", "Pod", "CREATE", fmt.Sprintf(pod, `,"annotations":{"malha.dev/dns":"maybe"}`, ""), ""), false, false, "Pod shop/web can't be injected by Malha: metadata.annotations[malha.dev/dns]: \"maybe\" is neither true nor false", ""},
		{"update", review("shop", "Pod", "UPDATE", fmt.Sprintf(pod, "", ""), ""), true, false, "", ""},
		{"not a pod", review("shop", "VirtualService", "CREATE", "{}", ""), true, false, "", ""},
	} {
		status, r, text := ask(t, h, "/inject", tc.body, nil)
		if status != 200 {
			t.Errorf("%s: %d %s", tc.name, status, text)
			continue
		}
		if r.Allowed != tc.allowed || len(r.Patch) > 0 != tc.patch || (r.PatchType != nil) != tc.patch {
			t.Errorf("%s: %+v", tc.name, r)
		}
		if tc.message != "" && (r.Result == nil || r.Result.Code != 422 || !strings.Contains(r.Result.Message, tc.message)) {
			t.Errorf("%s: %+v", tc.name, r.Result)
		}
		if got := strings.Join(r.Warnings, "\n"); !strings.Contains(got, tc.warn) || tc.warn == "" && got != "" {
			t.Errorf("%s: warnings %s", tc.name, got)
		}
		if tc.patch {
			var ops []struct {
				Op, Path string
				Value    any
			}
			if err := json.Unmarshal(r.Patch, &ops); err != nil || len(ops) < 6 {
				t.Errorf("%s: %s %v", tc.name, r.Patch, err)
			}
			for _, op := range ops {
				if op.Op != "add" { // what the injector does not know, newField, stays
					t.Errorf("%s: %+v", tc.name, op)
				}
			}
		}
	}
}

// TestFailures is what is no review, or can't be answered: an error of HTTP, and the next one is answered.
func TestFailures(t *testing.T) {
	outcomes := map[string]int{}
	o := options()
	o.Counted = func(_, outcome string, _ time.Duration) { outcomes[outcome]++ }
	h := New(o)
	good := review("outside", "Pod", "CREATE", fmt.Sprintf(pod, "", ""), "")
	for _, tc := range []struct {
		name, path, body string
		edit             func(*http.Request)
		status           int
		text             string
	}{
		{"media", "/inject", good, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 415, "want application/json"},
		{"no media", "/inject", good, func(r *http.Request) { r.Header.Del("Content-Type") }, 415, "want application/json"},
		{"method", "/inject", good, func(r *http.Request) { r.Method = "GET" }, 405, ""},
		{"path", "/other", good, nil, 404, ""},
		{"empty", "/inject", "", nil, 400, "can't be read"},
		{"too large", "/inject", strings.Repeat(" ", maxBody+1), nil, 413, "more than"},
		{"deep", "/inject", strings.Repeat(`{"a":`, 100_000), nil, 400, "can't be read"},
		{"not UTF-8", "/inject", "{\"kind\":\"\xff\"}", nil, 400, "want an AdmissionReview"},
		{"old version", "/inject", strings.Replace(good, "k8s.io/v1", "k8s.io/v1beta1", 1), nil, 400, "admissionReviewVersions"},
		{"no request", "/inject", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, nil, 400, "no request"},
		{"no uid", "/inject", strings.Replace(good, `"u1"`, `""`, 1), nil, 400, "no uid"},
		{"strange pod", "/inject", review("shop", "Pod", "CREATE", `{"spec":5}`, ""), nil, 400, "the pod can't be read"},
		{"strange object", "/validate", review("shop", "VirtualService", "CREATE", `5`, ""), nil, 400, "the object can't be read"},
		{"no object", "/validate", review("shop", "VirtualService", "CREATE", `null`, ""), nil, 400, "can't be read"},
		{"unknown namespace", "/inject", review("nowhere", "Pod", "CREATE", fmt.Sprintf(pod, "", ""), ""), nil, 503, "namespace nowhere is not known"},
		{"panic", "/inject", review("panic", "Pod", "CREATE", fmt.Sprintf(pod, "", ""), ""), nil, 500, "internal error"},
	} {
		if status, _, text := ask(t, h, tc.path, tc.body, tc.edit); status != tc.status || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %d %s", tc.name, status, text)
		}
		if status, _, text := ask(t, h, "/inject", good, nil); status != 200 {
			t.Fatalf("after %s: %d %s", tc.name, status, text)
		}
	}
	if outcomes["failed"] == 0 || outcomes["not-asked"] == 0 {
		t.Errorf("counted: %v", outcomes)
	}
}

const service = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"web","namespace":"shop"%s},"spec":{"hosts":["web"],"http":[{"route":[{"destination":{"host":"web"}%s}]}]}}`

func TestValidate(t *testing.T) {
	class := func(controller string) string {
		return `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":"other"},"spec":{"controllerName":"` + controller + `","parametersRef":{"group":"","kind":"ConfigMap","name":"x"}}}`
	}
	gateway := func(class string) string {
		return `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"web","namespace":"shop"},"spec":{"gatewayClassName":"` + class + `","listeners":[{"name":"https","port":443,"protocol":"HTTPS","tls":{"options":{"example.com/x":"y"},"certificateRefs":[{"name":"x"}]}}]}}`
	}
	ingress := func(class string) string {
		return `{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"name":"web","namespace":"shop"},"spec":{"ingressClassName":"` + class + `","defaultBackend":{"resource":{"apiGroup":"example.com","kind":"Bucket","name":"x"}}}}`
	}
	h := New(options())
	good, bad := fmt.Sprintf(service, "", ""), fmt.Sprintf(service, "", `,"wieght":50`)
	for _, tc := range []struct {
		name, body    string
		allowed       bool
		message, warn string
	}{
		{"good", review("shop", "VirtualService", "CREATE", good, ""), true, "", ""},
		{"bad", review("shop", "VirtualService", "CREATE", bad, ""), false, "VirtualService shop/web is not in order: MALHA0201 spec.http[0].route[0].wieght: unknown field `wieght` (did you mean `weight`?)", ""},
		{"becomes bad", review("shop", "VirtualService", "UPDATE", bad, good), false, "MALHA0201", ""},
		{"was bad", review("shop", "VirtualService", "UPDATE", fmt.Sprintf(service, `,"labels":{"a":"b"}`, `,"wieght":50`), bad), true, "", "MALHA0201"},
		{"was bad otherwise", review("shop", "VirtualService", "UPDATE", fmt.Sprintf(service, "", `,"wieght":60`), bad), false, "MALHA0201", ""},
		{"is deleted", review("shop", "VirtualService", "UPDATE", fmt.Sprintf(service, `,"deletionTimestamp":"2026-01-01T00:00:00Z"`, `,"wieght":50`), ""), true, "", "MALHA0201"},
		{"delete", review("shop", "VirtualService", "DELETE", "null", bad), true, "", ""},
		{"for somebody else", review("shop", "Thing", "CREATE", `{"apiVersion":"networking.istio.io/v9","kind":"Thing","metadata":{"name":"web"}}`, ""), true, "", "unknown kind"},
		{"another controller's class", review("", "GatewayClass", "CREATE", class("example.com/gateways"), ""), true, "", "MALHA0207 spec.parametersRef"},
		{"our class: its status says it", review("", "GatewayClass", "CREATE", class("malha.dev/gateway-controller"), ""), true, "", "MALHA0207 spec.parametersRef"},
		{"another controller's gateway", review("shop", "Gateway", "CREATE", gateway("other"), ""), true, "", "MALHA0207 spec.listeners[0].tls.options"},
		{"our gateway", review("shop", "Gateway", "CREATE", gateway("malha"), ""), false, "MALHA0207 spec.listeners[0].tls.options", ""},
		{"a route of who knows whose gateway", review("shop", "HTTPRoute", "CREATE", `{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"web","namespace":"shop"},"spec":{"parentRefs":[{"name":"other"}],"rules":[{"filters":[{"type":"ExternalAuth","externalAuth":{}}]}]}}`, ""), true, "", "externalAuth"},
		{"an Ingress of nginx", review("shop", "Ingress", "CREATE", ingress("nginx"), ""), true, "", "MALHA0207 spec.defaultBackend.resource"},
		{"our Ingress", review("shop", "Ingress", "CREATE", ingress("malha"), ""), false, "MALHA0207 spec.defaultBackend.resource", ""},
		{"not yet", review("shop", "Telemetry", "CREATE", `{"apiVersion":"telemetry.istio.io/v1","kind":"Telemetry","metadata":{"name":"web"}}`, ""), true, "", ""},
	} {
		status, r, text := ask(t, h, "/validate", tc.body, nil)
		switch {
		case status != 200:
			t.Errorf("%s: %d %s", tc.name, status, text)
		case r.Allowed != tc.allowed || len(r.Patch) > 0:
			t.Errorf("%s: %+v %+v", tc.name, r, r.Result)
		case tc.message != "" && !strings.Contains(r.Result.Message, tc.message):
			t.Errorf("%s: %s", tc.name, r.Result.Message)
		case !strings.Contains(strings.Join(r.Warnings, "\n"), tc.warn):
			t.Errorf("%s: warnings %q", tc.name, r.Warnings)
		}
	}
}

// TestSamples is that each object of the samples, alone, is accepted: what it refers to may come later.
func TestSamples(t *testing.T) {
	asked := 0
	err := filepath.WalkDir("../../samples", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		objects, _ := config.Parse(path, data)
		for i := range objects {
			var v map[string]any
			if objects[i].Node.Decode(&v) != nil || strings.Contains(path, "bad") {
				continue
			}
			b, err := json.Marshal(v)
			if err != nil {
				continue
			}
			asked++
			if _, r, text := ask(t, New(options()), "/validate", review("shop", objects[i].Kind, "CREATE", string(b), ""), nil); r == nil || !r.Allowed {
				t.Errorf("%s %s: %s %+v", path, objects[i].Kind, text, r)
			}
		}
		return nil
	})
	if err != nil || asked < 20 {
		t.Errorf("%d objects, %v", asked, err)
	}
}

func TestShort(t *testing.T) {
	for _, s := range []string{"a", strings.Repeat("a", 300), strings.Repeat("é", 200)} {
		if got := short(s); len(got) > warnSize || !strings.HasPrefix(s, strings.TrimSuffix(got, "…")) {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}

// FuzzReview is that no body panics, and that each answer is a review or an error of HTTP.
func FuzzReview(f *testing.F) {
	f.Add([]byte(review("shop", "Pod", "CREATE", fmt.Sprintf(pod, "", ""), "")), true)
	f.Add([]byte(review("shop", "VirtualService", "CREATE", fmt.Sprintf(service, "", ""), "")), false)
	f.Add([]byte(review("shop", "VirtualService", "UPDATE", fmt.Sprintf(service, "", ""), fmt.Sprintf(service, "", ""))), false)
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u"}}`), false)
	o := options()
	o.Namespace = func(_ context.Context, name string) (inject.Namespace, error) {
		return inject.Namespace{Name: name, Labels: map[string]string{inject.LabelInject: "enabled"}}, nil
	}
	h := New(o)
	f.Fuzz(func(t *testing.T, body []byte, pods bool) {
		path := "/validate"
		if pods {
			path = "/inject"
		}
		r := httptest.NewRequest("POST", path, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%q: %d %s", body, w.Code, w.Body)
		}
		if w.Code != 200 {
			return
		}
		var out admissionv1.AdmissionReview
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Response == nil {
			t.Fatalf("%q: %s %v", body, w.Body, err)
		}
		if len(out.Response.Patch) > 0 && !json.Valid(out.Response.Patch) {
			t.Errorf("%q: patch %s", body, out.Response.Patch)
		}
	})
}
