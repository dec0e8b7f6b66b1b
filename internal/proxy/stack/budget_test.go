package stack

import (
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

func TestBudget(t *testing.T) {
	now := time.Unix(1000, 0)
	count := func(b *budget, now time.Time) (n int) {
		for b.retry(now) {
			if n++; n > 10000 {
				t.Fatal("there is no bound")
			}
		}
		return n
	}
	var b budget
	b.init(plan.RetryBudget{Ratio: 0.2, MinPerSecond: 1, TTL: plan.Duration(10 * time.Second)})
	if n := count(&b, now); n != 10 {
		t.Errorf("without requests %d retries, want the floor of 10", n)
	}
	for range 100 {
		b.request(now)
	}
	if n := count(&b, now); n != 20 {
		t.Errorf("after 100 requests %d more retries, want 20", n)
	}
	if n := count(&b, now.Add(5*time.Second)); n != 0 {
		t.Errorf("%d retries within the time, want 0", n)
	}
	if n := count(&b, now.Add(11*time.Second)); n != 10 {
		t.Errorf("after the time %d retries, want the floor again", n)
	}
	var d budget
	d.init(plan.RetryBudget{})
	if n := count(&d, now); n != 100 {
		t.Errorf("the default lets %d retries pass without requests, want 100", n)
	}
}

func TestRetriesThatDontHelpStop(t *testing.T) {
	now := time.Unix(1000, 0)
	end := func(b *budget, helped bool, n int) {
		for range n {
			b.ended(now, helped)
		}
	}
	var b budget
	b.init(plan.RetryBudget{})
	if end(&b, false, vainMost-1); !b.retry(now) {
		t.Error("stopped by too few to conclude anything from")
	}
	if end(&b, false, 1); b.retry(now) {
		t.Error("retries that never help go on")
	}
	if !b.retry(now.Add(11 * time.Second)) {
		t.Error("what was long ago stops retries")
	}
	if end(&b, true, 3); !b.retry(now) {
		t.Error("retries of which one in eight helps are stopped")
	}
	var own budget
	own.init(plan.RetryBudget{Ratio: 0.2, MinPerSecond: 10})
	if end(&own, false, 1000); !own.retry(now) {
		t.Error("a budget that somebody wrote means what it says")
	}
}

func TestCheckOps(t *testing.T) {
	set := func(name, value string) *plan.HeaderOps {
		return &plan.HeaderOps{Request: plan.FieldOps{Set: []plan.Field{{Name: name, Value: value}}}}
	}
	for _, ok := range []*plan.HeaderOps{{}, set("x-a", "b c"), set("host", "a.b:80"), set(":authority", "a")} {
		if err := checkOps(ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []*plan.HeaderOps{set("x-a", "b\r\nc: d"), set("X-A", "b"), set("", "b"), set("a b", "c"), set("content-length", "1"),
		set("transfer-encoding", "chunked"), set("connection", "close"), set("host", "a/b"), set(":path", "/"), set("x", " y")} {
		if err := checkOps(bad); err == nil {
			t.Errorf("%v was accepted", bad.Request.Set)
		}
	}
}

func TestGRPCMessageIsPlain(t *testing.T) {
	if got := string(percentEncode([]byte("a%b\nc\x7f"))); got != "a%25b%0Ac%7F" {
		t.Errorf("%q", got)
	}
}
