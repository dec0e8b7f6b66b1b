package stack

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

func contains(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(w) == word {
			return true
		}
	}
	return false
}

func hourly(name string, n uint32, by plan.LimitBy) plan.RateLimit {
	return plan.RateLimit{Name: name, Origin: ident.Origin{Kind: "RateLimit", Namespace: "ns", Name: name, File: "limits.yaml", Line: 3},
		Rules: []plan.RateLimitRule{{Requests: n, Per: plan.Duration(time.Hour), By: by}}}
}

func TestRateLimits(t *testing.T) {
	r := newRig(t, setup{
		listener: plan.Listener{Limits: []string{"all"}},
		routes:   []plan.Route{{Origin: at("http[0]"), Forward: to("c"), Limits: []string{"route"}}},
		apps:     map[string][]http.HandlerFunc{"c": {says("well")}},
		limits:   []plan.RateLimit{hourly("all", 3, plan.ByAll), hourly("route", 2, plan.ByAddress)},
	})
	for i, want := range []struct {
		status int
		policy string
	}{{200, ""}, {200, ""}, {429, "address"}, {429, "all"}} {
		resp, body := r.do("GET", "/", "")
		if resp.StatusCode != want.status {
			t.Fatalf("request %d: %d %s", i, resp.StatusCode, body)
		}
		if want.policy == "" {
			if resp.Header.Get("ratelimit") != "" {
				t.Errorf("request %d: %v", i, resp.Header)
			}
			continue
		}
		quota, wait := `q=2;w=3600`, "1800"
		if want.policy == "all" {
			quota, wait = `q=3;w=3600`, "1200"
		}
		for name, value := range map[string]string{"retry-after": wait, "ratelimit": `"` + want.policy + `";r=0;t=` + wait, "ratelimit-policy": `"` + want.policy + `";` + quota} {
			if got := resp.Header.Get(name); got != value {
				t.Errorf("request %d: %s is %q, want %q", i, name, got, value)
			}
		}
	}
	logged := r.records()
	if l := logged[2]; l["response_flags"] != "RL" || l["response_code_details"] != "local_rate_limited" || l["route_origin"] != "RateLimit/ns/route (limits.yaml:3)" {
		t.Errorf("logged: %v", l)
	}
}

func TestRateLimitOfGRPC(t *testing.T) {
	r := newRig(t, setup{
		http2:  true,
		routes: []plan.Route{{Forward: to("c"), Limits: []string{"none"}}},
		apps:   map[string][]http.HandlerFunc{"c": {says("well")}},
		limits: []plan.RateLimit{hourly("none", 0, plan.ByAll)},
	})
	resp, _ := r.do("POST", "/s/m", "", "content-type: application/grpc")
	if resp.StatusCode != 200 || resp.Header.Get("grpc-status") != "8" || resp.Header.Get("retry-after") != "3600" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// A limit that is not there lets nothing pass: not of a rule, and not of a listener.
func TestMissingRateLimit(t *testing.T) {
	for _, c := range []setup{
		{listener: plan.Listener{Limits: []string{"gone"}}, routes: []plan.Route{{Forward: to("c")}}},
		{routes: []plan.Route{{Forward: to("c"), Limits: []string{"gone"}}}},
	} {
		c.apps = map[string][]http.HandlerFunc{"c": {says("well")}}
		r := newRig(t, c)
		if resp, body := r.do("GET", "/", ""); resp.StatusCode != 503 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		if l := r.records()[0]; l["response_flags"] != "NC" || l["response_code_details"] != "rate_limit_not_found" {
			t.Errorf("logged: %v", l)
		}
	}
}
