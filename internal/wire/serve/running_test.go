package serve_test

import (
	"errors"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/serve"
	"github.com/malha-mesh/malha/internal/wire/watch"
)

// A proxy that refuses a piece runs with the rest, and one that refuses the whole with nothing; neither is in sync.
func TestRunning(t *testing.T) {
	for _, whole := range []bool{false, true} {
		c := newControl(t, 0, serve.Options{})
		c.proxy("a", func(o *watch.Options) {
			apply := o.Apply
			o.Apply = func(p *plan.Plan) error {
				for _, l := range p.Listeners {
					switch {
					case whole:
						return errors.New("no memory")
					case l.Bind == "127.0.0.1:666":
						return pieceError{"listener", l.Name}
					}
				}
				return apply(p)
			}
		})
		p := planFor("a", 1, "10.0.0.1:80")
		p.Listeners[0].Bind = "127.0.0.1:666"
		c.set("a", p)
		eventually(t, "rejected", func() bool { return c.status("a").Sync == serve.SyncRejected })
		node := []ident.Name{p.Node.Name}
		if _, synced := c.s.Synced(node); synced {
			t.Errorf("the whole is refused %t: it is in sync", whole)
		}
		if _, running := c.s.Running(node); running == whole {
			t.Errorf("the whole is refused %t: it runs %t", whole, running)
		}
	}
}
