package stack

import (
	"net/http"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

func TestCORS(t *testing.T) {
	exact := []match.String{{Kind: match.Exact, Value: "https://a.example"}}
	any := []match.String{{Kind: match.Present}}
	full := plan.CORS{Origins: exact, Methods: []string{"GET", "PUT"}, Headers: []string{"x-a", "x-b"}, Expose: []string{"x-c"},
		MaxAge: plan.Duration(time.Minute), Credentials: true}
	open := plan.CORS{Origins: any, Methods: []string{"*"}, Headers: []string{"*"}, Expose: []string{"*"}}
	trusting := open
	trusting.Credentials = true
	shut := full
	shut.AnswerUnmatched = true
	preflight := []string{"origin: https://a.example", "access-control-request-method: PUT", "access-control-request-headers: x-q"}
	stranger := []string{"origin: https://b.example", "access-control-request-method: PUT"}
	for _, tc := range []struct {
		name    string
		policy  plan.CORS
		method  string
		headers []string
		passes  bool
		want    map[string]string // of access-control-…; all of them
	}{
		{"preflight", full, "OPTIONS", preflight, false, map[string]string{"Allow-Origin": "https://a.example", "Allow-Credentials": "true",
			"Allow-Methods": "GET, PUT", "Allow-Headers": "x-a, x-b", "Expose-Headers": "x-c", "Max-Age": "60"}},
		{"preflight of a stranger is forwarded", full, "OPTIONS", stranger, true, map[string]string{"Allow-Origin": "app"}},
		{"preflight of a stranger is answered", shut, "OPTIONS", stranger, false, nil},
		{"no preflight without a method", full, "OPTIONS", []string{"origin: https://a.example"}, true, map[string]string{"Allow-Origin": "https://a.example",
			"Allow-Credentials": "true", "Expose-Headers": "x-c"}},
		{"request", full, "GET", preflight[:1], true, map[string]string{"Allow-Origin": "https://a.example", "Allow-Credentials": "true", "Expose-Headers": "x-c"}},
		{"request of a stranger", shut, "GET", stranger[:1], true, map[string]string{"Allow-Origin": "app"}},
		{"request of the same origin", full, "GET", nil, true, map[string]string{"Allow-Origin": "app"}},
		{"stars", open, "OPTIONS", preflight, false, map[string]string{"Allow-Origin": "https://a.example", "Allow-Methods": "*", "Allow-Headers": "*", "Expose-Headers": "*"}},
		{"stars in a response", open, "GET", preflight[:1], true, map[string]string{"Allow-Origin": "https://a.example", "Expose-Headers": "*"}},
		{"stars with credentials", trusting, "OPTIONS", preflight, false, map[string]string{"Allow-Origin": "https://a.example", "Allow-Credentials": "true",
			"Allow-Methods": "PUT", "Allow-Headers": "x-q"}},
		{"stars with credentials, nothing asked", trusting, "OPTIONS", preflight[:2], false, map[string]string{"Allow-Origin": "https://a.example",
			"Allow-Credentials": "true", "Allow-Methods": "PUT"}},
	} {
		test := func(t *testing.T, route plan.Route) {
			asked := 0
			r := newRig(t, setup{
				routes: []plan.Route{route},
				apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) {
					asked++
					w.Header().Set("access-control-allow-origin", "app")
				}}},
			})
			resp, _ := r.do(tc.method, "/", "", tc.headers...)
			if resp.StatusCode != 200 || (asked == 1) != tc.passes {
				t.Errorf("status %d, the program saw %d requests", resp.StatusCode, asked)
			}
			for _, name := range []string{"Allow-Origin", "Allow-Credentials", "Allow-Methods", "Allow-Headers", "Expose-Headers", "Max-Age"} {
				if got := resp.Header.Get("Access-Control-" + name); got != tc.want[name] {
					t.Errorf("Access-Control-%s is %q, want %q", name, got, tc.want[name])
				}
			}
			if own := tc.want["Allow-Origin"] == "https://a.example"; own != (resp.Header.Get("vary") == "origin") {
				t.Errorf("vary is %q", resp.Header.Get("vary"))
			}
		}
		t.Run(tc.name, func(t *testing.T) {
			test(t, plan.Route{Origin: at("http[0]"), Forward: to("c"), CORS: &tc.policy})
		})
		t.Run(tc.name+", of a destination", func(t *testing.T) {
			theRules := &plan.CORS{Origins: []match.String{{Kind: match.Exact, Value: "https://nobody.example"}}, Expose: []string{"x-rule"}}
			test(t, plan.Route{Origin: at("http[0]"), Forward: []plan.Destination{{Cluster: "c", CORS: &tc.policy}}, CORS: theRules})
		})
	}
}

// What the rule says of an origin does not hold for a destination with a policy of its own.
func TestCORSOfADestinationReplacesTheRules(t *testing.T) {
	r := newRig(t, setup{
		routes: []plan.Route{{
			Origin: at("http[0]"), CORS: &plan.CORS{Origins: []match.String{{Kind: match.NonEmpty}}},
			Forward: []plan.Destination{{Cluster: "c", CORS: &plan.CORS{Origins: []match.String{{Kind: match.Exact, Value: "https://a.example"}}}}},
		}},
		apps: map[string][]http.HandlerFunc{"c": {func(http.ResponseWriter, *http.Request) {}}},
	})
	if resp, _ := r.do("GET", "/", "", "origin: https://b.example"); resp.Header.Get("access-control-allow-origin") != "" {
		t.Errorf("the rule let %q in", resp.Header.Get("access-control-allow-origin"))
	}
	if resp, _ := r.do("GET", "/", "", "origin: https://a.example"); resp.Header.Get("access-control-allow-origin") != "https://a.example" {
		t.Errorf("the destination's policy let nobody in: %v", resp.Header)
	}
}

// A share of the requests that is sent elsewhere asks no program, and pages of an origin that the destination knows may read where to.
func TestRedirectOfADestination(t *testing.T) {
	asked := 0
	r := newRig(t, setup{
		routes: []plan.Route{{
			Match: plan.Match{Path: &match.String{Kind: match.Segment, Value: "/old"}}, Origin: at("http[0]"),
			Forward: []plan.Destination{{
				Cluster: "c", Redirect: &plan.Redirect{Status: 308, Authority: "new.example", Path: "/new", Scheme: "https"},
				CORS: &plan.CORS{Origins: []match.String{{Kind: match.NonEmpty}}},
			}},
		}},
		apps: map[string][]http.HandlerFunc{"c": {func(http.ResponseWriter, *http.Request) { asked++ }}},
	})
	resp, _ := r.do("GET", "/old/a?q", "", "origin: https://a.example")
	if resp.StatusCode != 308 || resp.Header.Get("location") != "https://new.example/new/a?q" || resp.Header.Get("access-control-allow-origin") != "https://a.example" || asked != 0 {
		t.Errorf("%d %v, asked %d", resp.StatusCode, resp.Header, asked)
	}
}

// A star for what a page may read is spelled out for requests with credentials, and an answer of the proxy's own can be read
// as well, or scripts could not tell a rate limit from a broken network.
func TestCORSOfOwnAnswers(t *testing.T) {
	policy := &plan.CORS{Origins: []match.String{{Kind: match.NonEmpty}}, Expose: []string{"*"}, Credentials: true}
	r := newRig(t, setup{
		routes: []plan.Route{
			{Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: "/app"}}, Forward: to("c"), CORS: policy},
			{Origin: at("http[1]"), Direct: &plan.DirectResponse{Status: 418}, CORS: policy}},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("x-mine", "1")
			w.Header().Set("vary", "Accept, Origin")
		}}},
	})
	resp, _ := r.do("GET", "/app", "", "origin: https://a.example")
	if got := resp.Header.Get("access-control-expose-headers"); !contains(got, "x-mine") || contains(got, "*") {
		t.Errorf("exposed: %q", got)
	}
	if got := resp.Header.Values("vary"); len(got) != 1 || got[0] != "Accept, Origin" {
		t.Errorf("vary is %q", got)
	}
	resp, _ = r.do("GET", "/", "", "origin: https://a.example")
	if resp.StatusCode != 418 || resp.Header.Get("access-control-allow-origin") != "https://a.example" {
		t.Errorf("own answer: %d %v", resp.StatusCode, resp.Header)
	}
}

// A destination that would let pages send credentials does not overrule a policy that lets them not.
func TestCORSTakesBackCredentials(t *testing.T) {
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("c"), CORS: &plan.CORS{Origins: []match.String{{Kind: match.Present}}}}},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("access-control-allow-credentials", "true")
		}}},
	})
	if resp, _ := r.do("GET", "/", "", "origin: https://a.example"); resp.Header.Get("access-control-allow-credentials") != "" {
		t.Errorf("headers: %v", resp.Header)
	}
}
