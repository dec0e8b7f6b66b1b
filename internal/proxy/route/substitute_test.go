package route

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

func TestSubstitution(t *testing.T) {
	for _, tc := range []struct{ regex, by, path, want string }{
		{`^/api/v(\d+)/`, `/v\1/api/`, "/api/v2/x", "/v2/api/x"},
		{`/(\w+)/(\w+)$`, `/\2/\1`, "/r/a/b", "/r/b/a"},
		{`a`, `b`, "/a/xa", "/b/xb"},     // every match
		{`/a(x)?b`, `/\1c`, "/ab", "/c"}, // a group that took no part is empty
		{`^`, ``, "/a", "/a"},
		{`/secret/`, `/`, "/a/secret/b", "/a/b"},
		{`a`, `\0\0`, "/a", "/aa"},
		{`a`, ` ?#%`, "/a", "/%20%3F%23%25"}, // bytes that can't stand in a path
		{`x`, `a`, "/b", "/b"},               // no match
		{`a`, `..`, "/a", ""},
		{`a`, `/../b`, "/x/a", ""},
		{`%`, `\0`, "/%2F", "/%2F"},
		{`%2`, ``, "/%2Fa", "/Fa"},
		{`2F`, ``, "/%2F", ""},  // half an escape
		{`^/`, ``, "/a", ""},    // no path any more
		{`a`, `\\`, "/a", "//"}, // a backslash is a slash
		{`(?:)`, strings.Repeat("x", 1000), "/" + strings.Repeat("a", 100), ""},
	} {
		table := mustBuild(t, oneHost(plan.Route{Rewrite: &plan.Rewrite{Regex: tc.regex, Substitution: tc.by}}))
		req := request("GET", tc.path+"?q=a")
		w := table.Find(nil, req).Route.Rewriter(0)
		if !w.ChangesPath() {
			t.Errorf("%+v changes no path", tc)
		}
		buf, ok := w.Apply(req, []byte("before"))
		if !strings.HasPrefix(string(buf), "before") {
			t.Errorf("%+v: what was in the buffer is gone", tc)
		}
		if ok != (tc.want != "") || ok && string(req.Path) != tc.want || !ok && string(req.Path) != tc.path || string(req.Query) != "q=a" {
			t.Errorf("%+v: %q, %v", tc, req.Path, ok)
		}
	}
}

func TestDestinationRewrites(t *testing.T) {
	table := mustBuild(t, oneHost(plan.Route{
		Rewrite: &plan.Rewrite{Path: "/rule/", EndpointHost: true},
		Forward: []plan.Destination{{Cluster: "a"}, {Cluster: "b", Rewrite: &plan.Rewrite{Authority: "b.example"}}},
	}))
	rt := table.Find(nil, request("GET", "/")).Route
	for i, want := range []string{"a.example:8080/rule/x", "b.example/x"} {
		req := request("GET", "/x")
		if _, ok := rt.Rewriter(i).Apply(req, nil); !ok || string(req.Authority)+string(req.Path) != want {
			t.Errorf("destination %d sees %s%s, want %s", i, req.Authority, req.Path, want)
		}
	}
	if !rt.Rewriter(0).EndpointHost() || rt.Rewriter(1).EndpointHost() {
		t.Error("a destination's rewrite stands instead of the rule's, all of it")
	}
}

// What a substitution lets through is canonical, and what it refuses leaves no trace.
func FuzzSubstitution(f *testing.F) {
	f.Add(`/a(.*)`, `/b\1`, "/a/b")
	f.Fuzz(func(t *testing.T, regex, by, path string) {
		s, err := newSubstitution(regex, by)
		p, perr := message.CanonicalPath([]byte(path))
		if err != nil || perr != nil {
			return
		}
		out, ok := s.append(nil, p)
		if !ok {
			return
		}
		again, err := message.CanonicalPath([]byte(string(out)))
		if err != nil || string(again) != string(out) {
			t.Errorf("%q of %q by %q gives %q, which is not canonical", regex, p, by, out)
		}
	})
}
