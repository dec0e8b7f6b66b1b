package serve_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/wire/serve"
	"github.com/malha-mesh/malha/internal/wire/watch"
)

// TestStreamsAreBounded: a proxy connects again and again, is never without its plan, and what changed meanwhile reaches it.
func TestStreamsAreBounded(t *testing.T) {
	var streams atomic.Int64
	c := newControl(t, 0, serve.Options{
		MaxAge: 3 * time.Second, // a stream that ends within a second was a bad one
		OnEvent: func(e serve.Event) {
			if e.Kind == serve.EventConnected {
				streams.Add(1)
			}
		},
	})
	want := planFor("a", 3, "10.0.0.1:80")
	c.set("a", want)
	a := c.proxy("a")
	a.until(want)
	eventually(t, "three streams", func() bool { return streams.Load() >= 3 })
	c.synced("a")
	if n := len(a.plans); n != 0 {
		t.Errorf("%d plans were sent to a proxy that had the same", n)
	}
	if k := c.s.Counters(); k.Signed != 1 || k.Pushes != 1 {
		t.Errorf("%d certificates were signed and %d changes sent, want one of each: connecting again needs neither", k.Signed, k.Pushes)
	}
	if got, want := c.status("a").Expires, a.creds.Current().NotAfter; !got.Equal(want) {
		t.Errorf("it says that the proxy's certificate ends at %s, which is at %s", got, want)
	}
	want = planFor("a", 3, "10.0.0.2:80")
	c.set("a", want)
	a.until(want)
}

// TestOtherRoots: proxies are told that the mesh has other roots, and have them, with a certificate, before their old one is old.
func TestOtherRoots(t *testing.T) {
	old, err := ca.NewMaterial("")
	if err != nil {
		t.Fatal(err)
	}
	next, err := ca.NewMaterial("")
	if err != nil {
		t.Fatal(err)
	}
	c := newControl(t, 0, serve.Options{Heartbeat: 200 * time.Millisecond, Spread: 100 * time.Millisecond})
	if err := c.ca.Replace(old); err != nil {
		t.Fatal(err)
	}
	c.trust()
	beat := func(o *watch.Options) { o.Heartbeat = 200 * time.Millisecond }
	proxies := []*proxy{c.proxy("a", beat), c.proxy("b", beat)}
	want := planFor("a", 1, "10.0.0.1:80")
	c.set("a", want)
	proxies[0].until(want)
	for _, step := range []struct {
		what string
		sign *ca.Material
		also []*ca.Material
	}{
		{"both are trusted, the old one signs", old, []*ca.Material{next}},
		{"the new one signs", next, []*ca.Material{old}}, // the same roots: nobody has to be told
		{"the old one is forgotten", next, nil},
	} {
		m, err := step.sign.With(step.also...)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ca.Replace(m); err != nil {
			t.Fatal(err)
		}
		c.trust()
		for _, p := range proxies {
			eventually(t, step.what, func() bool { return p.creds.Current() != nil && p.creds.Current().Bundle == c.ca.Bundle() })
		}
		c.synced("a")
	}
	signed := c.s.Counters().Signed
	want = planFor("a", 1, "10.0.0.2:80")
	c.set("a", want)
	proxies[0].until(want)
	if again := c.s.Counters().Signed; again != signed {
		t.Errorf("%d more certificates although the roots stay", again-signed)
	}
}
