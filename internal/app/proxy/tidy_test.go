package proxy

import (
	"runtime/metrics"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

func TestJanitorCollectsOnceAfterABurst(t *testing.T) {
	const mb = 1 << 20
	var j janitor
	j.collected(memUse{cpu: time.Second, held: 8 * mb, holders: 20})
	j.rest = 0
	for i, s := range []struct {
		what string
		u    memUse
		want bool
	}{
		{"idle, nothing new", memUse{cpu: time.Second, held: 8 * mb, holders: 20}, false},
		{"a burst", memUse{cpu: 5 * time.Second, held: 30 * mb, holders: 2000}, false},
		{"little is still load", memUse{cpu: 5*time.Second + 50*time.Millisecond, held: 30 * mb, holders: 2000}, false},
		{"quiet, connections are open", memUse{cpu: 5*time.Second + 51*time.Millisecond, held: 30 * mb, holders: 2000}, true},
		{"quiet, nothing more to get", memUse{cpu: 5*time.Second + 110*time.Millisecond, held: 15 * mb, holders: 2000}, false},
		{"quiet, connections are gone", memUse{cpu: 5*time.Second + 120*time.Millisecond, held: 15 * mb, holders: 20}, true},
		{"quiet again", memUse{cpu: 5*time.Second + 130*time.Millisecond, held: 8 * mb, holders: 20}, false},
		{"a plan was put in force", memUse{cpu: 5*time.Second + 140*time.Millisecond, held: 8 * mb, holders: 20, plans: 1}, true},
		{"quiet with it", memUse{cpu: 5*time.Second + 150*time.Millisecond, held: 4 * mb, holders: 20, plans: 1}, false},
	} {
		got := j.look(s.u, tidyEvery)
		if got != s.want {
			t.Fatalf("look %d, %s: collect %v, want %v", i, s.what, got, s.want)
		}
		if got {
			after := s.u
			after.held /= 2
			j.collected(after) // it cost nothing
		}
	}
}

// The names of the runtime's counters are checked by the runtime alone, when they are read.
func TestMeasureReadsWhatTheRuntimeHas(t *testing.T) {
	u := measure(tidySamples(), &telemetry.New(telemetry.Options{}).Proxy)
	if u.held == 0 || u.holders == 0 || u.cpu == 0 {
		t.Fatalf("measured %+v: all of these are more than zero in a running process", u)
	}
	for _, s := range tidySamples() {
		found := false
		for _, d := range metrics.All() {
			found = found || d.Name == s.Name
		}
		if !found {
			t.Errorf("the runtime has no counter %q", s.Name)
		}
	}
}

func TestJanitorPaysForACollectionBeforeTheNext(t *testing.T) {
	const mb = 1 << 20
	var j janitor
	u := memUse{cpu: time.Second, held: 8 * mb}
	j.collected(u)
	j.rest = 0
	burst := func() bool { // over at this look, and it left something
		u.held += 4 * mb
		return j.look(u, tidyEvery)
	}
	if !burst() {
		t.Fatal("nothing was collected after the first burst")
	}
	u.cpu += 2 * tidyEvery / tidyCost
	j.collected(u)
	for i, want := range []bool{false, true} {
		if got := burst(); got != want {
			t.Fatalf("look %d after a collection that costs two: collect %v, want %v", i+1, got, want)
		}
	}
}

func TestJanitorCollectsOnceMoreForWhatTheBurstLeft(t *testing.T) {
	var j janitor
	u := memUse{held: 30 << 20}
	if !j.look(u, tidyEvery) {
		t.Fatal("nothing was collected after the burst")
	}
	j.collected(u)
	var at []time.Duration
	for d := tidyEvery; d < 10*tidyAgain; d += tidyEvery {
		if j.look(u, tidyEvery) {
			j.collected(u)
			at = append(at, d)
		}
	}
	if len(at) != 1 || at[0] < tidyAgain || at[0] >= tidyAgain+tidyEvery {
		t.Fatalf("idle after a burst, collected again after %v, want once, after %v", at, tidyAgain)
	}
}
