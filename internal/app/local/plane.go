package local

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/world"
)

// plane is the control plane of the mesh, which runs in this process, and what proxies are told to find it.
type plane struct {
	*control.Control
	roots string // file with the roots
}

// newPlane opens the certificate authority and the port that proxies connect to.
func newPlane(m *Mesh) (*plane, error) {
	c, err := control.Open(control.Options{Dir: m.state.path("ca"), CertTTL: m.o.CertTTL, Log: m.log})
	if err != nil {
		return nil, fmt.Errorf("the control plane cannot start: %w", err)
	}
	p := &plane{Control: c, roots: m.state.path("roots.pem")}
	if err := os.WriteFile(p.roots, c.RootsPEM(), 0o600); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("no place for the roots: %w", err)
	}
	return p, nil
}

// run serves proxies until ctx ends; nil is an end in order.
func (p *plane) run(ctx context.Context) error {
	err := p.Run(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// token proves to the authority that a proxy is the one we start for u.
func (p *plane) token(u *unit) (string, error) {
	return p.Token(world.NodeOf(u.role, u.name, u.identity, u.labels))
}

// syncState is what the control plane knows of a proxy.
type syncState struct {
	sync    Sync
	reason  string
	applied time.Time
	expires time.Time
}

func (p *plane) status() map[ident.Name]syncState {
	out := make(map[ident.Name]syncState)
	for _, s := range p.Status() {
		out[s.Name] = syncStateOf(&s)
	}
	return out
}

func syncStateOf(s *control.ProxyStatus) syncState {
	st := syncState{sync: Stale, reason: s.Reason, applied: s.LastAck, expires: s.CertExpires}
	switch s.Sync {
	case control.Synced:
		// A proxy confirms what it runs again whenever it connects, as for every new certificate.
		st.sync, st.applied = Synced, s.Changed
	case control.Failed:
		st.sync = SyncFailed
	}
	return st
}
