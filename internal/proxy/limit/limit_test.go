package limit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

var start = time.Unix(1_800_000_000, 0)

func build(t testing.TB, before *Set, rules ...plan.RateLimitRule) *Set {
	t.Helper()
	s, err := Build([]plan.RateLimit{{Name: "l", Rules: rules}}, before)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func perSecond(n uint32) plan.RateLimitRule {
	return plan.RateLimitRule{Requests: n, Per: plan.Duration(time.Second)}
}

func subject(peer string, headers ...string) *Subject {
	s := &Subject{Request: &message.Request{Method: []byte("GET"), Path: []byte("/")}, Client: netip.MustParseAddr("192.0.2.1")}
	if peer != "" {
		s.Peer = ident.Identity{TrustDomain: "t", Namespace: "n", ServiceAccount: peer}
	}
	for i := 0; i < len(headers); i += 2 {
		s.Request.Fields.Add(headers[i], []byte(headers[i+1]))
	}
	return s
}

func passes(s *Set, now time.Time, sub *Subject, n int) (passed int) {
	for range n {
		if _, ok := Take([]*Limit{s.Get("l")}, now, sub); ok {
			passed++
		}
	}
	return passed
}

func TestBurstThenRate(t *testing.T) {
	r := perSecond(10)
	r.Burst = 3
	s, now := build(t, nil, r), start
	if n := passes(s, now, subject(""), 20); n != 3 {
		t.Errorf("%d of a burst pass, want 3", n)
	}
	x, ok := Take([]*Limit{s.Get("l")}, now, subject(""))
	if ok || x.Wait != 100*time.Millisecond || x.Policy != "all" || x.Requests != 10 || x.Rule == nil || x.Limit.Name != "l" {
		t.Errorf("excess is %+v", x)
	}
	if n := passes(s, now.Add(x.Wait-1), subject(""), 1); n != 0 {
		t.Error("one passes before its time")
	}
	if n := passes(s, now.Add(x.Wait), subject(""), 1); n != 1 {
		t.Error("none passes when its time is come")
	}
	if n := passes(s, now.Add(time.Hour), subject(""), 20); n != 3 {
		t.Errorf("%d pass after a rest, want the capacity", n)
	}
	if n := passes(build(t, nil, perSecond(7)), now, subject(""), 20); n != 7 {
		t.Errorf("without a burst %d pass, want Requests", n)
	}
}

// Over any stretch of time no more passes than capacity + rate × time, and someone who always asks gets no less.
func TestRateHolds(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := plan.RateLimitRule{Requests: 1 + rnd.Uint32N(1000), Per: plan.Duration(1 + rnd.Int64N(int64(time.Minute))), Burst: rnd.Uint32N(50)}
		s, now, passed := build(t, nil, r), start, 0
		capacity := r.Burst
		if capacity == 0 {
			capacity = r.Requests
		}
		each := max(int64(r.Per)/int64(r.Requests), 1)
		for range 2000 {
			now = now.Add(time.Duration(rnd.Int64N(2*each + 1)))
			for rnd.IntN(2) == 0 {
				passed += passes(s, now, subject(""), 1)
			}
		}
		most := int64(capacity) + int64(now.Sub(start))/each
		if int64(passed) > most {
			t.Fatalf("seed %d: %+v: %d passed in %v, at most %d may", seed, r, passed, now.Sub(start), most)
		}
		passes(s, now, subject(""), int(capacity))
		if n := passes(s, now.Add(time.Duration(5*each)), subject(""), 100); n != 5 && capacity >= 5 {
			t.Fatalf("seed %d: %+v: %d pass after the time of 5", seed, r, n)
		}
	}
}

func TestBuckets(t *testing.T) {
	by := func(b plan.LimitBy, header string) plan.RateLimitRule {
		r := perSecond(2)
		r.By, r.Header = b, header
		return r
	}
	other := subject("")
	other.Client = netip.MustParseAddr("192.0.2.2")
	for _, tc := range []struct {
		name string
		rule plan.RateLimitRule
		a, b *Subject
		same bool
	}{
		{"all", by(plan.ByAll, ""), subject("x"), subject("y"), true},
		{"identities", by(plan.ByIdentity, ""), subject("x"), subject("y"), false},
		{"nobody is one", by(plan.ByIdentity, ""), subject(""), other, true},
		{"header", by(plan.ByHeader, "x-key"), subject("", "x-key", "1"), subject("", "x-key", "2"), false},
		{"without the header", by(plan.ByHeader, "x-key"), subject("x"), subject("y"), true},
		{"an empty header is one", by(plan.ByHeader, "x-key"), subject("", "x-key", ""), subject(""), false},
		{"address", by(plan.ByAddress, ""), subject(""), other, false},
	} {
		s := build(t, nil, tc.rule)
		if n := passes(s, start, tc.a, 5); n != 2 {
			t.Errorf("%s: %d pass, want 2", tc.name, n)
		}
		want := 2
		if tc.same {
			want = 0
		}
		if n := passes(s, start, tc.b, 5); n != want {
			t.Errorf("%s: %d of the other pass, want %d", tc.name, n, want)
		}
	}
}

func TestOverrides(t *testing.T) {
	r := perSecond(2)
	r.By = plan.ByIdentity
	r.Overrides = []plan.RateOverride{{Identities: []ident.Identity{subject("x").Peer, subject("y").Peer}, Requests: 5}, {Identities: []ident.Identity{subject("z").Peer}}}
	s := build(t, nil, r)
	for peer, want := range map[string]int{"x": 5, "y": 5, "z": 0, "w": 2, "": 2} {
		if n := passes(s, start, subject(peer), 9); n != want {
			t.Errorf("%d of %q pass, want %d", n, peer, want)
		}
	}
	if x, ok := Take([]*Limit{s.Get("l")}, start, subject("z")); ok || x.Wait != time.Second || x.Requests != 0 {
		t.Errorf("who may never pass: %+v", x)
	}
}

func TestRulesAndMatches(t *testing.T) {
	wide, narrow := perSecond(10), perSecond(1)
	narrow.Matches = []plan.Match{
		{Headers: []plan.FieldMatch{{Name: "x", Value: match.String{Kind: match.Exact, Value: "1"}}}},
		{Headers: []plan.FieldMatch{{Name: "x", Value: match.String{Kind: match.Exact, Value: "2"}}}},
	}
	s := build(t, nil, wide, narrow)
	if n := passes(s, start, subject("", "x", "1"), 5); n != 1 {
		t.Errorf("%d pass the narrow rule", n)
	}
	if n := passes(s, start, subject("", "x", "2"), 5); n != 0 {
		t.Errorf("%d pass by the other match of the same rule", n)
	}
	// What the narrow rule refused was given back to the wide one.
	if n := passes(s, start, subject("", "x", "3"), 20); n != 9 {
		t.Errorf("%d pass the wide rule, want the 9 that are left", n)
	}
	steps := s.Get("l").Explain(subject("", "x", "3"))
	if len(steps) != 2 || !steps[0].Applies || steps[1].Applies || !strings.Contains(steps[1].Reason, "header x") {
		t.Errorf("explained as %+v", steps)
	}
	x, _ := Take([]*Limit{s.Get("l")}, start, subject("", "x", "1"))
	if x.Policy != "all" {
		t.Errorf("the first rule is empty, and %q is named", x.Policy)
	}
	x, _ = Take([]*Limit{s.Get("l")}, start.Add(500*time.Millisecond), subject("", "x", "1"))
	if x.Policy != "all-2" {
		t.Errorf("the second rule is called %q", x.Policy)
	}
}

func TestStateOutlivesPlans(t *testing.T) {
	r := perSecond(3)
	before := build(t, nil, r)
	passes(before, start, subject(""), 3)
	r.Requests = 4
	after := build(t, before, r)
	if n := passes(after, start, subject(""), 5); n != 0 {
		t.Errorf("%d pass an empty bucket after an update", n)
	}
	if n := passes(after, start.Add(500*time.Millisecond), subject(""), 5); n != 2 {
		t.Errorf("%d pass after half a second at the new rate, want 2", n)
	}
	r.By = plan.ByAddress
	if n := passes(build(t, before, r), start, subject(""), 5); n != 4 {
		t.Errorf("%d pass a rule that counts by something else", n)
	}
}

// However many values strangers make up, buckets are bounded, and the one in use stays.
func TestBucketsAreBounded(t *testing.T) {
	r := perSecond(1)
	r.By, r.Header, r.Per = plan.ByHeader, "k", plan.Duration(time.Hour)
	s := build(t, nil, r)
	passes(s, start, subject("", "k", "mine"), 1)
	for i := range 3 * shards * perShard {
		passes(s, start, subject("", "k", fmt.Sprint(i)), 1)
		if i%100 == 0 && passes(s, start, subject("", "k", "mine"), 1) != 0 {
			t.Fatal("a bucket in use was lost")
		}
	}
	n := 0
	for i := range s.Get("l").rules[0].state.many {
		sh := &s.Get("l").rules[0].state.many[i]
		if len(sh.places) != len(sh.entries)-1 {
			t.Fatalf("%d places for %d entries", len(sh.places), len(sh.entries)-1)
		}
		n += len(sh.places)
	}
	if n != shards*perShard {
		t.Errorf("%d buckets", n)
	}
	if got := passes(s, start, subject("", "k", "0"), 1); got != 1 {
		t.Error("the oldest bucket is still there")
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, r := range map[string]plan.RateLimitRule{
		"no time":   {Requests: 1},
		"no header": {Requests: 1, Per: 1, By: plan.ByHeader},
		"by what":   {Requests: 1, Per: 1, By: "moon"},
		"regex":     {Requests: 1, Per: 1, Matches: []plan.Match{{Path: &match.String{Kind: match.Regex, Value: "("}}}},
	} {
		if _, err := Build([]plan.RateLimit{{Name: "l", Rules: []plan.RateLimitRule{r}}}, nil); err == nil || !strings.Contains(err.Error(), "rate limit l: rule 0") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Build([]plan.RateLimit{{Name: "l"}, {Name: "l"}}, nil); err == nil {
		t.Error("a name stands twice")
	}
	var none *Set
	if none.Get("l") != nil {
		t.Error("nothing has a limit")
	}
}

// Many at once get exactly what there is.
func TestConcurrent(t *testing.T) {
	for _, by := range []plan.LimitBy{plan.ByAll, plan.ByIdentity} {
		r := perSecond(1000)
		r.By = by
		s := build(t, nil, r)
		var wg sync.WaitGroup
		var n atomic.Int64
		for range 8 {
			wg.Go(func() { n.Add(int64(passes(s, start, subject("x"), 500))) })
		}
		wg.Wait()
		if n.Load() != 1000 {
			t.Errorf("by %q: %d pass", by, n.Load())
		}
	}
}

func TestTakeDoesNotAllocate(t *testing.T) {
	for _, by := range []plan.LimitBy{plan.ByAll, plan.ByIdentity, plan.ByAddress, plan.ByHeader} {
		r := perSecond(100)
		r.By, r.Header = by, "x"
		s, sub, now := build(t, nil, r), subject("me", "x", "1"), start
		ls := []*Limit{s.Get("l")}
		if n := testing.AllocsPerRun(500, func() { Take(ls, now, sub) }); n != 0 {
			t.Errorf("by %q: %v allocations", by, n)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	for _, by := range []plan.LimitBy{plan.ByAll, plan.ByIdentity} {
		b.Run("by "+string(by), func(b *testing.B) {
			r := perSecond(1 << 30)
			r.By = by
			s, sub := build(b, nil, r), subject("me")
			ls := []*Limit{s.Get("l")}
			b.ReportAllocs()
			for b.Loop() {
				Take(ls, start, sub)
			}
		})
	}
}

// Who used up a slow rule waits, after its rate was raised, as long as the new one says: not for the old one's hours.
func TestRateIsRaised(t *testing.T) {
	for _, by := range []plan.LimitBy{plan.ByAll, plan.ByIdentity} {
		r := plan.RateLimitRule{Requests: 24, Per: plan.Duration(24 * time.Hour), By: by}
		before := build(t, nil, r)
		passes(before, start, subject("x"), 24)
		r.Requests, r.Per = 10, plan.Duration(time.Second)
		after := build(t, before, r)
		x, ok := Take([]*Limit{after.Get("l")}, start, subject("x"))
		if ok || x.Wait != 100*time.Millisecond {
			t.Errorf("by %q: an empty bucket passes %t, else waits %s; want 100ms", by, ok, x.Wait)
		}
		if n := passes(after, start.Add(500*time.Millisecond), subject("x"), 9); n != 5 {
			t.Errorf("by %q: %d pass after half a second at the new rate, want 5", by, n)
		}
	}
}

// A clock that was ahead for a moment, as before it is set by NTP, keeps nobody out until then.
func TestClockGoesBack(t *testing.T) {
	r := perSecond(10)
	s := build(t, nil, r)
	passes(s, start.Add(24*time.Hour), subject(""), 10)
	if n := passes(s, start, subject(""), 10); n != 0 {
		t.Errorf("%d pass an empty bucket", n)
	}
	if n := passes(s, start.Add(500*time.Millisecond), subject(""), 10); n != 5 {
		t.Errorf("%d pass after half a second, want 5", n)
	}
}

// Goroutines ask with times that are a little apart: no more passes for that.
func TestTimesOfGoroutines(t *testing.T) {
	r := perSecond(1000)
	r.Burst = 1
	s, passed := build(t, nil, r), 0
	for i := range 1000 {
		now := start.Add(time.Duration(i) * time.Millisecond)
		passed += passes(s, now, subject(""), 2)
		passed += passes(s, now.Add(-500*time.Millisecond), subject(""), 2)
	}
	if passed != 1000 {
		t.Errorf("%d pass in a second, want 1000", passed)
	}
}
