package explain_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/golden/plans"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/testmesh"
)

// offline makes a Mesh of manifests, to ask about it.
func offline(t testing.TB, path string) *explain.Mesh {
	t.Helper()
	m, err := explain.New(plans.Of(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestAsTheRealMesh sends requests through a real mesh and asks about the same: what is said must be what happens.
func TestAsTheRealMesh(t *testing.T) {
	path := filepath.Join("testdata", "shop.yaml")
	manifests, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	asked := offline(t, path)
	mesh := testmesh.Start(t, string(manifests))
	type request struct {
		method, url string
		headers     []string
	}
	get := func(url string, headers ...string) request { return request{"GET", url, headers} }
	requests := []request{
		get("http://web/"), get("http://web/", "x-user: ann"), get("http://web/", "x-user: bob"), get("http://web/", "x-user: ann", "x-user: bob"),
		get("http://web/old/a?b=c"), get("http://web/old"), get("http://web/oldest"), get("http://web/api/v1/x"), get("http://web/api/"), get("http://web/api"),
		get("http://web/moved/here?q=1"), get("http://web/gone"), get("http://web/broken"), get("http://web/nohost"), get("http://web/q?debug=1"), get("http://web/q?debug=0&debug=1"),
		get("http://web/a/../gone"), get("http://web/%67one"), get("http://web/re/42"), get("http://web/re/42x"), get("http://web/named"),
		get("http://web.default.svc.cluster.local/named"), get("http://web.default/named"), get("http://WEB/named"), get("http://web:80/named"),
		{"PUT", "http://web/put", nil}, {"POST", "http://web/put", nil}, {"DELETE", "http://guarded/x", nil}, {"POST", "http://guarded/open", nil},
		get("http://guarded/open"), get("http://guarded/closed"), get("http://guarded/closed", "x-key: secret"), get("http://guarded/closed", "x-key: no"),
		get("http://guarded/admin/a"), get("http://guarded/x/%2e%2e/admin/a"), get("http://guarded/other"), get("http://guarded/xfcc", "x-forwarded-client-cert: forged"),
		get("http://empty/"), get("http://plain/x"), get("http://web/late"), get("http://web/idless"),
	}
	ask := func(from string, r request) *explain.Walk {
		t.Helper()
		q := explain.Request{Method: r.method, URL: r.url}
		for _, line := range r.headers {
			h, err := explain.ParseHeader(line)
			if err != nil {
				t.Fatal(err)
			}
			q.Headers = append(q.Headers, h)
		}
		name, err := asked.Resolve(from)
		if err != nil {
			t.Fatal(err)
		}
		w, err := asked.Request(name, q)
		if err != nil {
			t.Fatalf("%s %s: %v", r.method, r.url, err)
		}
		return w
	}
	for _, from := range []string{"client", "other", "web-v1"} {
		c := mesh.Client(from)
		for _, r := range requests {
			w := ask(from, r)
			a := mesh.Do(c, r.method, r.url, "", append([]string{"x-malha-explain: 1"}, r.headers...)...)
			compare(t, from+" "+r.method+" "+r.url+" "+strings.Join(r.headers, ", "), w, &a)
		}
	}
	door := mesh.Gateway(80)
	for _, r := range []request{
		get("http://shop.example/"), get("http://shop.example/web/x"), get("http://shop.example/none"), get("http://other.example/"), get("http://a.wild.example/x"),
		get("http://wild.example/x"), get("http://shop.example/guarded"), get("http://shop.example/secure", "x-forwarded-proto: https"),
	} {
		w := ask(explain.GatewayName, r)
		u := strings.TrimPrefix(r.url, "http://")
		host, rest, _ := strings.Cut(u, "/")
		a := mesh.Do(http.DefaultClient, r.method, "http://"+door+"/"+rest, "", append(r.headers, "host: "+host)...)
		compare(t, "gateway "+r.url, w, &a)
	}
}

// compare says where an answer is not what the walk foresees.
func compare(t *testing.T, what string, w *explain.Walk, a *testmesh.Answer) {
	t.Helper()
	foreseen := false
	for _, o := range w.Outcomes {
		switch {
		case o.Answer != nil:
			foreseen = foreseen || a.By == "" && o.Answer.Status == a.Status && o.Answer.Location == a.Header.Get("Location")
		default:
			foreseen = foreseen || a.By == o.Workload.Name && a.Status == 200
		}
	}
	if !foreseen {
		t.Errorf("%s: the answer is %d by %q, location %q; foreseen is %s", what, a.Status, a.By, a.Header.Get("Location"), outcomes(w))
	}
	if a.By != "" && len(w.Branches) == 1 {
		b := w.Branches[0]
		target, _, _ := strings.Cut(b.Path, "?")
		want := b.Method + " " + target
		if !strings.HasPrefix(a.Body, want) || !strings.Contains(a.Body, "\nhost: "+b.Authority+"\n") {
			t.Errorf("%s: the program saw\n%s\nforeseen is %s at %s", what, a.Body, want, b.Authority)
		}
	}
	if got := a.Header.Get("x-malha-route"); got != "" {
		origin := ident.Origin{}
		if w.Action != nil {
			origin = w.Action.Origin
		} else if w.Host != nil {
			origin = w.Host.Origin
		}
		origin.File, origin.Line = "", 0
		if rule, _, _ := strings.Cut(got, " ("); rule != origin.String() {
			t.Errorf("%s: the rule is %s; foreseen is %s", what, got, origin)
		}
	}
}

func outcomes(w *explain.Walk) string {
	var out []string
	for _, o := range w.Outcomes {
		if o.Answer != nil {
			out = append(out, o.Answer.By.String()+": "+o.Answer.Text+" "+o.Answer.Location)
		} else {
			out = append(out, o.Workload.String()+o.External)
		}
	}
	return strings.Join(out, " | ")
}
