package serve_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
	"github.com/malha-mesh/malha/internal/wire/serve"
	"github.com/malha-mesh/malha/internal/wire/watch"
)

// picky is a proxy that can't use a listener of one address, and how often anybody refused a change.
func picky(t *testing.T, refused string) (c *control, p *proxy, nacks *atomic.Int32) {
	t.Helper()
	nacks = new(atomic.Int32)
	c = newControl(t, 0, serve.Options{OnEvent: func(e serve.Event) {
		if e.Kind == serve.EventNack {
			nacks.Add(1)
		}
	}})
	p = c.proxy("a", func(o *watch.Options) {
		apply := o.Apply
		o.Apply = func(pl *plan.Plan) error {
			for _, l := range pl.Listeners {
				if l.Bind == refused {
					return pieceError{"listener", l.Name}
				}
			}
			return apply(pl)
		}
	})
	return c, p, nacks
}

// TestHeldBackKeepsWhatItNeeds: the listener that stays, because its next version was refused, refers to a policy that is to go. The
// rest of the change gets through all the same, and the policy goes once a version of the listener is taken.
func TestHeldBackKeepsWhatItNeeds(t *testing.T) {
	c, p, nacks := picky(t, "127.0.0.1:666")
	good := planFor("a", 2, "10.0.0.1:80")
	c.set("a", good)
	p.until(good)

	next := planFor("a", 2, "10.0.0.2:80")
	next.Policies[0].Name = "default/q"
	next.Listeners[0].Bind, next.Listeners[0].Policies = "127.0.0.1:666", []string{"default/q"}
	c.set("a", next)
	half := planFor("a", 2, "10.0.0.2:80")
	half.Policies = append(half.Policies, next.Policies...)
	p.until(half)
	eventually(t, "rejected", func() bool { return c.status("a").Sync == serve.SyncRejected })
	if st := c.status("a"); len(st.Rejected) != 1 || st.Rejected[0].Ref != (wire.Ref{Kind: wire.KindListener, Name: "in-a"}) || nacks.Load() != 2 {
		t.Errorf("after %d refusals %v is held back, want 2 and the listener alone", nacks.Load(), st.Rejected)
	}

	fixed := planFor("a", 2, "10.0.0.2:80")
	fixed.Policies = next.Policies
	fixed.Listeners[0].Policies = []string{"default/q"}
	c.set("a", fixed)
	p.until(fixed)
	c.synced("a")
}

// TestHeldBackIsForgottenWithItsPiece: what was refused once, and was taken out, is tried again when it comes back.
func TestHeldBackIsForgottenWithItsPiece(t *testing.T) {
	c, p, nacks := picky(t, "127.0.0.1:666")
	good := planFor("a", 1, "10.0.0.1:80")
	c.set("a", good)
	p.until(good)
	more := planFor("a", 1, "10.0.0.1:80")
	more.Listeners = append(more.Listeners, plan.Listener{Name: "second", Bind: "127.0.0.1:666"})
	for want := range int32(2) {
		c.set("a", more)
		eventually(t, "rejected", func() bool { return c.status("a").Sync == serve.SyncRejected })
		if n := nacks.Load(); n != want+1 {
			t.Errorf("%d refusals, want %d: the listener is tried each time that it comes", n, want+1)
		}
		c.set("a", good)
		c.synced("a")
	}
}

// TestRefusedIsTriedAgain: what kept a proxy from taking a change may pass, a port in use for a moment, and then it takes it without another
// one. Until then its status says what it refuses, while it is asked as well.
func TestRefusedIsTriedAgain(t *testing.T) {
	for name, why := range map[string]error{"a piece": pieceError{"listener", "in-a"}, "the whole plan": errors.New("no descriptors left")} {
		t.Run(name, func(t *testing.T) {
			var nacks atomic.Int32
			c := newControl(t, 0, serve.Options{Again: time.Millisecond, OnEvent: func(e serve.Event) {
				if e.Kind == serve.EventNack {
					nacks.Add(1)
				}
			}})
			var taken atomic.Bool
			taken.Store(true)
			p := c.proxy("a", func(o *watch.Options) {
				apply := o.Apply
				o.Apply = func(pl *plan.Plan) error {
					if taken.Load() && len(pl.Listeners) > 0 && pl.Listeners[0].Bind == "127.0.0.1:666" {
						return why
					}
					return apply(pl)
				}
			})
			good := planFor("a", 1, "10.0.0.1:80")
			c.set("a", good)
			p.until(good)
			next := planFor("a", 1, "10.0.0.2:80")
			next.Listeners[0].Bind = "127.0.0.1:666"
			c.set("a", next)
			eventually(t, "rejected", func() bool { return c.status("a").Sync == serve.SyncRejected })
			for n := nacks.Load(); nacks.Load() < n+3; time.Sleep(time.Millisecond) {
				if st := c.status("a"); st.Sync != serve.SyncRejected || !strings.Contains(st.Reason+wire.Summary(st.Rejected), why.Error()) {
					t.Fatalf("while it is asked again: %+v", st)
				}
			}
			taken.Store(false)
			p.until(next)
			c.synced("a")
			if st := c.status("a"); st.Reason != "" || len(st.Rejected) != 0 {
				t.Errorf("after it took the change: %+v", st)
			}
		})
	}
}
