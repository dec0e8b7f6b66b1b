package serve

import (
	"io"
	"net"
	"strconv"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
)

// TestHeldBackIsBounded: a proxy that takes no plan at all, first because of a piece and then for no reason, makes its stream keep
// nothing of the plans that went.
func TestHeldBackIsBounded(t *testing.T) {
	authority, err := ca.Open(ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Authority: authority})
	here, there := net.Pipe()
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, there)
	}()
	defer func() { _ = here.Close(); <-read }()
	name := ident.Name{Namespace: "default", Name: "a"}
	ss := &session{s: s, conn: here, node: name, wake: make(chan struct{}, 1), held: map[wire.Ref]heldBack{}}
	s.node(name).session = ss
	for i := range 50 {
		listener := "l" + strconv.Itoa(i)
		if err := s.SetPlan(name, &plan.Plan{Listeners: []plan.Listener{{Name: listener, Bind: "127.0.0.1:80"}}}); err != nil {
			t.Fatal(err)
		}
		for _, rejected := range [][]wire.Rejection{{{Ref: wire.Ref{Kind: wire.KindListener, Name: listener}}}, nil} {
			if err := ss.push(); err != nil {
				t.Fatal(err)
			}
			if err := ss.answered(reply{ss.nonce, &wire.Nack{Nonce: ss.nonce, Reason: "no", Rejected: rejected}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(ss.held) > 1 {
		t.Errorf("%d pieces are held back of a plan that has one listener", len(ss.held))
	}
}
