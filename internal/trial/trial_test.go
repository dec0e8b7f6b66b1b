package trial_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/golden/plans"
	"github.com/malha-mesh/malha/internal/trial"
)

// mesh makes a Mesh of the manifests under test.
func mesh(t testing.TB, paths ...string) *explain.Mesh {
	t.Helper()
	m, err := explain.New(plans.Of(t, paths...))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestTour runs the example beside the sample.
func TestTour(t *testing.T) { passes(t, 2, nil, "bookinfo", "tour", "tests.yaml") }

// TestShop runs those of the sample in which objects of every dialect stand side by side, with a certificate made for it.
func TestShop(t *testing.T) {
	secret, err := exec.Command("go", "run", "../../samples/shop/certificate").Output()
	if err != nil {
		t.Fatal(err)
	}
	certificate := filepath.Join(t.TempDir(), "certificate.yaml")
	if err := os.WriteFile(certificate, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	others := []string{certificate}
	if _, err := os.Stat("../../samples/shop/mesh/certificate.yaml"); err == nil { // somebody tried the sample here
		others = nil
	}
	passes(t, 1, others, "shop", "tests", "tests.yaml")
}

// passes runs a file of a sample, which has some suites, over its manifests and others.
func passes(t *testing.T, n int, others []string, file ...string) {
	t.Helper()
	path := filepath.Join(append([]string{"..", "..", "samples"}, file...)...)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	suites, ds := trial.Parse(path, data)
	if len(ds) > 0 || len(suites) != n {
		t.Fatalf("%d suites, %v", len(suites), ds)
	}
	for i := range suites {
		for _, r := range suites[i].Run(mesh(t, slices.Concat(suites[i].Files, others)...)) {
			if !r.Passed() {
				t.Errorf("%s from %s: %s", r.Case, r.From, strings.Join(r.Failures, "; "))
			}
		}
	}
}

// ask runs one case from a workload of the sample with the tour's rules.
func ask(t *testing.T, m *explain.Mesh, body string) []string {
	t.Helper()
	return asked(t, m, "from: productpage-v1\n"+body)
}

func asked(t *testing.T, m *explain.Mesh, body string) []string {
	t.Helper()
	var text strings.Builder
	text.WriteString("apiVersion: malha.dev/v1alpha1\nkind: Test\nmetadata: {name: t}\nspec:\n  cases:\n    - name: case\n")
	for line := range strings.SplitSeq(body, "\n") {
		text.WriteString("      " + line + "\n")
	}
	suites, ds := trial.Parse("t.yaml", []byte(text.String()))
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	return suites[0].Run(m)[0].Failures
}

// TestFailures wants of each expectation that it can fail, and says why.
func TestFailures(t *testing.T) {
	tour := filepath.Join("..", "..", "samples", "bookinfo", "tour")
	m := mesh(t, filepath.Join(tour, "..", "mesh"), filepath.Join(tour, "canary.yaml"), filepath.Join(tour, "authorization.yaml"))
	f := mesh(t, filepath.Join(tour, "..", "mesh"), filepath.Join(tour, "fault.yaml"))
	reviews, ratings := "request: http://reviews:9080/\n", "request: http://ratings:9080/ratings/0\n"
	for _, c := range []struct {
		mesh *explain.Mesh
		body string
		want string
	}{
		{m, reviews + "expect: {workload: reviews-v1}", "want workload reviews-v1, is default/reviews-v2 (10 %)"},
		{m, reviews + "expect: {version: v2}", "want version v2, is v1 (90 %)"},
		{m, reviews + "expect: {subset: v2}", "want subset v2, is v1 (90 %)"},
		{m, reviews + "expect: {service: ratings}", "want service ratings, is reviews.default.svc.cluster.local (90 %)"},
		{m, reviews + "expect: {split: {v2: 20 ± 9}}", "want 20 % ± 9 for v2, is 10 %"},
		{m, reviews + "expect: {split: {v2: 20 ± 10}}", ""},
		{m, reviews + "expect: {status: 403}", "want status 403, is default/reviews-v1 (90 %), default/reviews-v2 (10 %)"},
		{m, reviews + "expect: {flags: NR}", "want flags NR, is default/reviews-v1 (90 %), default/reviews-v2 (10 %)"},
		{m, reviews + "expect: {denied: true}", "want it denied, is default/reviews-v1 (90 %), default/reviews-v2 (10 %)"},
		{m, ratings + "expect: {denied: false}", "want it allowed, 100 % is denied: no ALLOW policy matches"},
		{m, ratings + "expect: {deniedBy: other}", "want denied by other, is default/ratings-readers"},
		{m, ratings + "expect: {deniedBy: other/ratings-readers}", "want denied by other/ratings-readers, is default/ratings-readers"},
		{m, ratings + "expect: {allowedBy: ratings-readers}", "want it allowed by ratings-readers, is answered by default/ratings-v1 with 403 UAEX (100 %)"},
		{m, ratings + "expect: {workload: ratings-v1}", "want workload ratings-v1, is answered by default/ratings-v1 with 403 UAEX (100 %)"},
		{m, reviews + "expect: {allowedBy: ratings-readers}", "want allowed by ratings-readers, is none"},
		{m, reviews + "expect: {redirect: http://x/}", "want a redirect to http://x/, is default/reviews-v1 (90 %), default/reviews-v2 (10 %)"},
		{m, reviews + "expect: {body: x}", "want a direct response, is default/reviews-v1 (90 %), default/reviews-v2 (10 %)"},
		{m, reviews + "expect: {rule: canary-testers}", "want rule canary-testers, is split (VirtualService/default/reviews http[1])"},
		{m, reviews + "expect: {rule: 'VirtualService/default/reviews http[1]'}", ""},
		{m, reviews + "expect: {rule: VirtualService/default/review}", "want rule VirtualService/default/review, is split (VirtualService/default/reviews http[1])"},
		{m, reviews + "expect: {timeout: 3s}", "want timeout 3s, is 0s"},
		{m, reviews + "expect: {timeout: 0s}", ""},
		{m, reviews + "expect: {retries: 0}", "want 0 retries, are 2"},
		{m, reviews + "expect: {path: /x}", "want path /x, is /"},
		{m, reviews + "expect: {authority: x}", "want authority x, is reviews:9080"},
		{m, reviews + "expect: {mtls: false}", "want mutual TLS false, is true to reviews-v1"},
		{m, reviews + "expect: {fault: {delay: 2s}}", "want a fault, is none"},
		{f, ratings + "expect: {fault: {delay: 1s}}", "want a delay of 1s, is 2s"},
		{f, ratings + "expect: {fault: {delayPercent: 10}}", "want 10 % delayed, are 50 %"},
		{f, ratings + "expect: {fault: {abort: 503}}", "want an abort with 503, is with 500"},
		{f, ratings + "expect: {fault: {abortPercent: 5 ± 4}}", "want 5 % ± 4 aborted, are 10 %"},
		{m, reviews + "expect: {mirrors: {ratings: 10}}", "want 10 % copied to ratings, are 0 %"},
		{m, reviews + "expect: {mirrors: {}}", ""},
		{m, "request: http://reviews:9081/\nexpect: {subset: v1}", "want subset v1, is none (100 %)"},
	} {
		got := ""
		if all := ask(t, c.mesh, c.body); len(all) > 0 {
			got = all[0]
		}
		if got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.body, got, c.want)
		}
	}
}

// TestConditions wants of what is expected besides destinations that it holds, and that it can fail.
func TestConditions(t *testing.T) {
	m := mesh(t, filepath.Join("testdata", "conditions.yaml"))
	web, door := "from: client\nrequest: http://web/\n", "from: gateway\nrequest: https://shop.example/\n"
	for _, c := range []struct{ body, want string }{
		{web + "expect: {split: {eu: 100, us/a: 0}, workload: web-near}", ""},
		{web + "expect: {split: {us: 50}}", "want 50 % for us, is 0 %"},
		{web + "expect: {balancer: maglev, hash: '', session: ''}", ""},
		{web + "headers: {x-user: ann}\nexpect: {hash: header x-user}", ""},
		{web + "expect: {hash: header x-user}", "want the endpoint chosen by header x-user, is by nothing"},
		{web + "expect: {session: cookie id}", "want the endpoint kept by cookie id, is by nothing"},
		{web + "expect: {balancer: roundRobin}", "want balancer roundRobin, is maglev"},
		{web + "expect: {limits: [each], perTry: 2s, response: 0s, idle: 0s}", ""},
		{web + "expect: {limits: [default/each, other]}", "want it counted by rate limit other, is by default/each"},
		{web + "expect: {limits: []}", "rate limit default/each counts it too"},
		{web + "expect: {perTry: 3s}", "want a timeout of an attempt of 3s, is 2s"},
		{web + "expect: {response: 3s}", "want a timeout of the response head of 3s, is 0s"},
		{web + "headers: {origin: 'https://shop.example'}\nexpect: {cors: true}", ""},
		{web + "headers: {origin: 'https://evil.example'}\nexpect: {cors: false}", ""},
		{web + "headers: {origin: 'https://evil.example'}\nexpect: {cors: true}", `want the origin allowed, but origin "https://evil.example" is not allowed`},
		{"from: client\nrequest: http://moved/old/x\nexpect: {redirect: 'http://moved/new/x'}", ""},
		{"from: client\nrequest: http://moved/old/x\nexpect: {redirect: 'http://moved/x'}", "want a redirect to http://moved/x, is to http://moved/new/x"},
		{"from: client\nrequest: http://moved/old/x\nexpect: {mtls: true}", "it is sent nowhere: answered by default/client with 302 (100 %)"},
		{"from: client\nrequest: http://moved/\nexpect: {redirect: 'http://moved/x'}", "want a redirect to http://moved/x, is default/web-far (45 %), default/web-near (45 %), default/web-near (10 %)"},
		{"from: client\nrequest: http://moved/\nheaders: {origin: 'https://shop.example'}\nexpect: {cors: true}", "want the origin allowed, but no policy asks"},
		{"from: client\nrequest: http://moved/\nheaders: {origin: 'https://evil.example'}\nexpect: {cors: false}", ""},
		{web + "expect: {server: shop.example}", "want server shop.example, is none"},
		{web + "expect: {tls: ended}", "want TLS ended, is no TLS"},
		{web + "expect: {external: 'x:80'}", "want external x:80, is default/web-near (100 %)"},
		{door + "expect: {server: shop.example, tls: ended, rule: in, service: web}", ""},
		{door + "expect: {tls: passed}", "want TLS passed, is ended"},
		{"from: gateway\nrequest: https://deep.example/\nexpect: {tls: passed, service: web}", ""},
		{"from: gateway\nrequest: https://none.example/\nexpect: {service: web}", "want service web, is answered by istio-system/istio-ingressgateway with the end of the connection NR"},
		{"from: gateway\nrequest: http://shop.example/x\nexpect: {status: 301, redirect: 'https://shop.example/x'}", ""},
	} {
		got := strings.Join(asked(t, m, c.body), "; ")
		if got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.body, got, c.want)
		}
	}
	_, ds := trial.Parse("t.yaml", []byte("apiVersion: malha.dev/v1alpha1\nkind: Test\nmetadata: {name: t}\nspec: {cases: [{from: a, request: http://x, expect: {tls: gone}}]}\n"))
	if len(ds) != 1 || ds[0].Path != "spec.cases[0].expect.tls" {
		t.Errorf("diagnostics %v", ds)
	}
}

// TestZones: a client's requests stay in its zone as far as the zone's share of the endpoints goes for its share of the clients, and never
// leave the region.
func TestZones(t *testing.T) {
	m := mesh(t, filepath.Join("testdata", "zones.yaml"))
	for from, split := range map[string]string{
		"client-a": "eu/a: 50, eu/b: 50, us: 0", "client-b": "eu/a: 0, eu/b: 100", "alone": "eu/a: 25, eu/b: 75", "client-us": "us: 100",
	} {
		for _, wrong := range asked(t, m, "from: "+from+"\nrequest: http://web/\nexpect: {split: {"+split+"}}") {
			t.Errorf("%s: %s", from, wrong)
		}
	}
}

func TestParseSaysEverythingThatIsWrong(t *testing.T) {
	const text = `apiVersion: malha.dev/v1alpha1
kind: Test
metadata: {name: t}
spec:
  cases:
    - request: http://x/
      expect: {subst: v1}
    - from: a
      request: GET http://x/ HTTP/1.1
      headers: {"a b": c}
      client: nowhere
      expect: {}
`
	_, ds := trial.Parse("t.yaml", []byte(text))
	var got []string
	for _, d := range ds {
		got = append(got, d.String())
	}
	want := []string{"t.yaml:7: error MALHA0201: Test default/t spec.cases[0].expect.subst: unknown field `subst` (did you mean `subset`?)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	_, ds = trial.Parse("t.yaml", []byte(strings.Replace(text, "subst: v1", "subset: v1", 1)))
	got = nil
	for _, d := range ds {
		got = append(got, d.String())
	}
	want = []string{
		"t.yaml:6: error MALHA0208: Test default/t spec.cases[0].from: the case names no sender (add from: WORKLOAD, or gateway)",
		`t.yaml:9: error MALHA0212: Test default/t spec.cases[1].request: "GET http://x/ HTTP/1.1" is not a request (write it as METHOD URL)`,
		`t.yaml:10: error MALHA0212: Test default/t spec.cases[1].headers[a b]: "a b: c" is not a header; write it as 'name: value'`,
		`t.yaml:11: error MALHA0212: Test default/t spec.cases[1].client: "nowhere" is not an IP address`,
		"t.yaml:12: error MALHA0208: Test default/t spec.cases[1].expect: the case expects nothing, so it could not fail (add expect: {...})",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func BenchmarkCase(b *testing.B) {
	tour := filepath.Join("..", "..", "samples", "bookinfo", "tour")
	m := mesh(b, filepath.Join(tour, "..", "mesh"), filepath.Join(tour, "canary.yaml"), filepath.Join(tour, "authorization.yaml"))
	data, err := os.ReadFile(filepath.Join(tour, "tests.yaml"))
	if err != nil {
		b.Fatal(err)
	}
	suites, _ := trial.Parse("tests.yaml", data)
	cases := 0
	for b.Loop() {
		cases += len(suites[0].Run(m))
	}
	b.ReportMetric(float64(cases)/b.Elapsed().Seconds(), "cases/s")
}
