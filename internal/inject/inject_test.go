package inject_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/malha-mesh/malha/internal/capture"
	"github.com/malha-mesh/malha/internal/inject"
	"github.com/malha-mesh/malha/internal/inject/document"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func config() *inject.Config {
	c := inject.Defaults("malha.dev/malha-proxy:v1")
	c.Adopt = []inject.Dialect{inject.Istio, inject.Linkerd}
	c.Always = true
	c.Resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("20Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
	}
	return c
}

// through injects a stream, and returns what was said too.
func through(t *testing.T, c *inject.Config, in []byte) (out []byte, said string) {
	t.Helper()
	var b strings.Builder
	out, err := document.Stream(in, func(object []byte) (inject.Patch, error) {
		w, err := inject.ReadWorkload(object)
		if err != nil || w == nil {
			return nil, err
		}
		r, err := c.Workload(w, inject.Namespace{Name: "shop"})
		fmt.Fprintf(&b, "# %s %s: %v %s: %s\n", w.Kind, w.Name, r.Inject, r.Code, r.Reason)
		for _, n := range r.Notes {
			fmt.Fprintf(&b, "#   note: %s\n", n)
		}
		var refusal *inject.Refusal
		if errors.As(err, &refusal) {
			for _, p := range refusal.Problems {
				fmt.Fprintf(&b, "#   %s: %s (%s)\n", p.Path, p.Message, p.Hint)
			}
			return nil, nil
		}
		return r.Patch, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, b.String()
}

func undo(t *testing.T, in []byte) []byte {
	t.Helper()
	out, err := document.Stream(in, func(object []byte) (inject.Patch, error) {
		w, err := inject.ReadWorkload(object)
		if err != nil || w == nil {
			return nil, err
		}
		p, err := inject.Undo(&w.Meta, &w.Spec)
		return p.Below(w.Path), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestGoldens injects the pods of testdata, twice, and takes it back.
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 25 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out, said := through(t, config(), in)
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			got := said + string(out)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Error(d)
			}
			again, _ := through(t, config(), out)
			if d := cmp.Diff(string(out), string(again)); d != "" {
				t.Error("injecting twice changes something:", d)
			}
			if !strings.Contains(said, ": true ") {
				return
			}
			if d := cmp.Diff(values(t, in), values(t, undo(t, out))); d != "" {
				t.Error("taken back, it is not what it was:", d)
			}
		})
	}
}

// values are the objects of a stream. Fields that hold null or nothing are as good as absent.
func values(t *testing.T, in []byte) []any {
	t.Helper()
	var all []any
	_, err := document.Stream(in, func(object []byte) (inject.Patch, error) {
		var v any
		err := json.Unmarshal(object, &v)
		all = append(all, bare(v))
		return nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func bare(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e = bare(e); e == nil {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			v[i] = bare(v[i])
		}
		if len(v) == 0 {
			return nil
		}
	}
	return v
}

// TestAsked is who decides: a pod over its namespace, our words over others', and only words that are obeyed.
func TestAsked(t *testing.T) {
	type words map[string]string
	for _, tc := range []struct {
		name                     string
		pod, podNotes, ns, notes words
		adopt                    bool
		want                     inject.Code
	}{
		{name: "nothing", want: inject.NotAsked},
		{name: "namespace", ns: words{"malha.dev/inject": "enabled"}, want: inject.Asked},
		{name: "pod declines", pod: words{"malha.dev/inject": "disabled"}, ns: words{"malha.dev/inject": "enabled"}, want: inject.Declined},
		{name: "pod asks", pod: words{"malha.dev/inject": "enabled"}, ns: words{"malha.dev/inject": "disabled"}, want: inject.Asked},
		{name: "not adopted", ns: words{"istio-injection": "enabled"}, notes: words{"linkerd.io/inject": "enabled"}, want: inject.NotAsked},
		{name: "istio", ns: words{"istio-injection": "enabled"}, adopt: true, want: inject.Asked},
		{name: "istio revision", ns: words{"istio.io/rev": "canary"}, adopt: true, want: inject.Asked},
		{name: "istio injection beats revision", ns: words{"istio-injection": "disabled", "istio.io/rev": "canary"}, adopt: true, want: inject.Declined},
		{name: "istio pod", pod: words{"sidecar.istio.io/inject": "false"}, ns: words{"istio-injection": "enabled"}, adopt: true, want: inject.Declined},
		{name: "istio pod alone", pod: words{"sidecar.istio.io/inject": "true"}, adopt: true, want: inject.Asked},
		{name: "istio label beats annotation", pod: words{"sidecar.istio.io/inject": "true"}, podNotes: words{"sidecar.istio.io/inject": "false"}, adopt: true, want: inject.Asked},
		{name: "ours beats istio's", pod: words{"malha.dev/inject": "disabled", "sidecar.istio.io/inject": "true"}, adopt: true, want: inject.Declined},
		{name: "linkerd namespace", notes: words{"linkerd.io/inject": "enabled"}, adopt: true, want: inject.Asked},
		{name: "linkerd pod", podNotes: words{"linkerd.io/inject": "disabled"}, notes: words{"linkerd.io/inject": "enabled"}, adopt: true, want: inject.Declined},
		{name: "linkerd ingress", podNotes: words{"linkerd.io/inject": "ingress"}, adopt: true, want: inject.Asked},
		{name: "bad label", pod: words{"malha.dev/inject": "yes"}, want: inject.Invalid},
		{name: "bad namespace", ns: words{"istio-injection": "on"}, adopt: true, want: inject.Invalid},
		{name: "annotation", podNotes: words{"malha.dev/inject": "disabled"}, ns: words{"malha.dev/inject": "enabled"}, want: inject.Invalid},
	} {
		c := inject.Defaults("p:v1")
		if tc.adopt {
			c.Adopt = []inject.Dialect{inject.Istio, inject.Linkerd}
		}
		spec := &corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}
		r, err := c.Pod(&metav1.ObjectMeta{Labels: tc.pod, Annotations: tc.podNotes}, spec, inject.Namespace{Name: "shop", Labels: tc.ns, Annotations: tc.notes})
		if r.Code != tc.want || (err != nil) != (tc.want == inject.Invalid) || r.Inject != (tc.want == inject.Asked) {
			t.Errorf("%s: %s %s %v, want %s", tc.name, r.Code, r.Reason, err, tc.want)
		}
	}
}

// TestNever is namespaces where nothing is injected, whatever anybody asks for.
func TestNever(t *testing.T) {
	c := config()
	c.Exclude = []string{"legacy"}
	for _, ns := range []string{"kube-system", "malha-system", "legacy"} {
		r, err := c.Pod(&metav1.ObjectMeta{}, &corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}, inject.Namespace{Name: ns, Labels: map[string]string{"malha.dev/inject": "enabled"}})
		if err != nil || r.Code != inject.SystemLocation {
			t.Errorf("%s: %s %v", ns, r.Code, err)
		}
	}
}

// TestNamespaceAnnotations is that Linkerd's and our settings are inherited, and Istio's are not.
func TestNamespaceAnnotations(t *testing.T) {
	ns := inject.Namespace{Name: "shop", Annotations: map[string]string{"config.linkerd.io/skip-inbound-ports": "25", "malha.dev/access-log": "stdout", "malha.dev/drain-timeout": "0s", "sidecar.istio.io/logLevel": "debug"}}
	r, err := config().Pod(&metav1.ObjectMeta{}, &corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}, ns)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Patch.JSON()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"--exclude-inbound-ports=25": true, "--access-log=stdout": true, "--log-level=debug": false, "--drain-timeout=0s": true} {
		if strings.Contains(string(b), text) != want {
			t.Errorf("%s: %v, want %v", text, !want, want)
		}
	}
	ns.Annotations["malha.dev/access-log"] = "loud"
	if _, err := config().Pod(&metav1.ObjectMeta{}, &corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}, ns); err == nil || !strings.Contains(err.Error(), "namespace shop metadata.annotations") {
		t.Errorf("got %v", err)
	}
}

// TestResources is what the proxy gets of 20Mi asked for and 256Mi at most, by annotations: what they don't say gives way.
func TestResources(t *testing.T) {
	for _, tc := range []struct{ request, limit, want string }{
		{"", "", "20Mi 256Mi"},
		{"64Mi", "", "64Mi 256Mi"},
		{"512Mi", "", "512Mi 512Mi"},
		{"", "16Mi", "16Mi 16Mi"},
		{"8Mi", "16Mi", "8Mi 16Mi"},
		{"64Mi", "16Mi", "refused"},
	} {
		notes := map[string]string{}
		for key, v := range map[string]string{"malha.dev/proxy-memory-request": tc.request, "malha.dev/proxy-memory-limit": tc.limit} {
			if v != "" {
				notes[key] = v
			}
		}
		w := &inject.Workload{Meta: metav1.ObjectMeta{Annotations: notes}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
		r, err := config().Workload(w, inject.Namespace{Name: "shop"})
		if tc.want == "refused" || err != nil {
			if err == nil || !strings.Contains(err.Error(), "asks for 64Mi of memory and gets 16Mi at most") || tc.want != "refused" {
				t.Errorf("%+v: %v", tc, err)
			}
			continue
		}
		got := ""
		for _, op := range r.Patch {
			if k, ok := op.Value.(map[string]any); ok && k["name"] == inject.ProxyContainer {
				resources := k["resources"].(map[string]any)
				got = fmt.Sprint(resources["requests"].(map[string]any)["memory"], " ", resources["limits"].(map[string]any)["memory"])
			}
		}
		if got != tc.want {
			t.Errorf("%+v: got %s", tc, got)
		}
	}
}

// TestMetacharacters is that values of users stay data: in arguments, in JSON, in the kubelet's $(NAME).
func TestMetacharacters(t *testing.T) {
	for _, evil := range []string{"a\"}],\"x\":[{\"", "$(PATH)", "$$(PATH)", "{{ .Values }}", "a\nb: c", "☃\u2028"} {
		spec := &corev1.PodSpec{Containers: []corev1.Container{{Name: "app", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: "/", Port: intPort(80), HTTPHeaders: []corev1.HTTPHeader{{Name: "X", Value: evil}}}}}}}}
		r, err := config().Pod(&metav1.ObjectMeta{Annotations: map[string]string{"note": evil}}, spec, inject.Namespace{Name: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.Patch.JSON()
		if err != nil || !json.Valid(b) {
			t.Fatalf("%q: %s %v", evil, b, err)
		}
		if i := strings.Index(string(b), "$(PATH)"); i >= 0 && !strings.HasSuffix(string(b[:i]), "$") {
			t.Errorf("%q would be replaced by the kubelet: %s", evil, b)
		}
	}
}

// TestConfig is injection.yaml.
func TestConfig(t *testing.T) {
	c, err := inject.ReadConfig([]byte("image: malha.dev/malha-proxy:v2\npullPolicy: Never\nlogLevel: warn\nadopt: [istio]\nresources:\n  requests: {cpu: 10m}\n"))
	if err != nil || c.Version != "v2" || c.Control != "malhad.malha-system.svc:15012" || c.Pull != corev1.PullNever || !slices.Equal(c.Adopt, []inject.Dialect{inject.Istio}) {
		t.Errorf("%+v %v", c, err)
	}
	for text, want := range map[string]string{
		"adopt: []": "no image", "image: a\nimag: b": "unknown field", "image: a\nadopt: [consul]": "neither istio nor linkerd", "image: a\nlogLevel: loud": "none of debug", "image: a\npullPolicy: Often": "none of Always",
	} {
		if _, err := inject.ReadConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestUndoStrange is annotations of status that nobody wrote so.
func TestUndoStrange(t *testing.T) {
	for _, v := range []string{"", "{", `{"unheardOf":1}`} {
		if _, err := inject.Undo(&metav1.ObjectMeta{Annotations: map[string]string{inject.StatusAnnotation: v}}, &corev1.PodSpec{}); err == nil {
			t.Errorf("%q: no error", v)
		}
	}
}

func intPort(n int32) intstr.IntOrString { return intstr.FromInt32(n) }

// TestNothingPassesBy: what is not captured on its way in is the proxy's own, and no program may say that it listens there.
func TestNothingPassesBy(t *testing.T) {
	o := capture.Defaults()
	o.DNS = inject.DNSPort
	own := 0
	for _, chain := range capture.Rules(o).Chains {
		if chain.Name != "inbound" {
			continue
		}
		for _, rule := range chain.Rules {
			if !rule.Do.Return {
				continue
			}
			port := int32(rule.When[len(rule.When)-1].Ports.First)
			own++
			spec := &corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{ContainerPort: port}}}}}
			if _, err := config().Pod(&metav1.ObjectMeta{}, spec, inject.Namespace{Name: "shop"}); err == nil || !strings.Contains(err.Error(), "the port is the proxy's") {
				t.Errorf("connections to port %d pass by the proxy, and a program that listens there is injected: %v", port, err)
			}
		}
	}
	if own < 5 {
		t.Errorf("%d ports of the proxy's own", own)
	}
}
