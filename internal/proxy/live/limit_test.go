package live_test

import (
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// Rate limits of a plan are in force, and a new plan neither forgets what was used nor gives more than its rate.
func TestRateLimitsOutlivePlans(t *testing.T) {
	p := func() *plan.Plan {
		p := simple(named(t, "a"), func(r *plan.Route) { r.Limits = []string{"l"} })
		p.Limits = []plan.RateLimit{{Name: "l", Rules: []plan.RateLimitRule{{Requests: 2, Per: plan.Duration(time.Hour)}}}}
		return p
	}
	px, at := start(t, live.Options{}, p())
	c := client(t)
	for i, want := range []int{200, 200, 429} {
		if resp, _ := get(t, c, "http://"+at["out"]+"/"); resp.StatusCode != want {
			t.Errorf("request %d: %d, want %d", i, resp.StatusCode, want)
		}
	}
	if err := px.Apply(p()); err != nil {
		t.Fatal(err)
	}
	if resp, _ := get(t, c, "http://"+at["out"]+"/"); resp.StatusCode != 429 {
		t.Errorf("after a new plan: %d", resp.StatusCode)
	}
	bad := p()
	bad.Limits[0].Rules[0].Per = 0
	if err := px.Apply(bad); err == nil || err.Error() != "limit l: rule 0 (): it has no time in which requests count" {
		t.Errorf("a limit without a time: %v", err)
	}
}
