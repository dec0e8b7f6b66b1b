package server

import (
	"fmt"
	"math/rand/v2"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// Rules is a listener of a plan made ready to run. It is immutable.
type Rules struct {
	Listener *plan.Listener
	Authz    *authz.Engine // nil: everybody may pass
	HTTP     *stack.Stack  // nil: no HTTP is served
	TCP      *Opaque       // nil: no opaque bytes are served

	// Of a forward proxy.
	Ports map[int]*Port
	Other *Port // for ports that nothing is known about
}

// Port is what a forward proxy does for targets with one port.
type Port struct {
	Protocol ident.Protocol
	HTTP     *stack.Stack // requests to the proxy; nil: none
	Direct   *stack.Stack // requests that do not name a target as a proxy's do: no passthrough
	Hosts    map[string]*Host
	Known    func(host []byte) bool // hosts that HTTP has rules for
	Pass     bool                   // whether hosts without rules may be dialled
}

// Host is an opaque service behind a forward proxy.
type Host struct {
	TCP    *Opaque
	Detect bool
}

// Opaque is where opaque connections go.
type Opaque struct {
	Clusters []*upstream.Cluster
	Weights  []uint32
	Origin   *ident.Origin
	total    uint64
}

// NewOpaque resolves destinations. One that does not exist is an error.
func NewOpaque(set *upstream.Set, ds []plan.Destination, origin *ident.Origin) (*Opaque, error) {
	if len(ds) == 0 {
		return nil, nil
	}
	o := &Opaque{Origin: origin}
	for i := range ds {
		c := set.Cluster(ds[i].Cluster)
		if c == nil {
			return nil, fmt.Errorf("TCP destination %q is not a cluster of the plan", ds[i].Cluster)
		}
		o.Clusters = append(o.Clusters, c)
		o.Weights = append(o.Weights, ds[i].Weight)
		o.total += uint64(ds[i].Weight)
	}
	return o, nil
}

// pick draws a destination; nil when all weights are 0.
func (o *Opaque) pick() *upstream.Cluster {
	switch {
	case len(o.Clusters) == 1:
		return o.Clusters[0]
	case o.total == 0:
		return nil
	}
	n := rand.Uint64N(o.total)
	for i, w := range o.Weights {
		if n < uint64(w) {
			return o.Clusters[i]
		}
		n -= uint64(w)
	}
	return nil
}

// handler serves the exchanges of an HTTP connection, each by the rules of its moment.
type handler struct{ l *Listener }

func (h handler) Serve(d stream.Downstream, p *conn.Peer) {
	defer func() {
		if h.l.recovered("exchange") {
			d.Reset(stream.Internal)
		}
	}()
	if s := h.l.Rules().HTTP; s != nil {
		s.Serve(d, p)
		return
	}
	d.Reset(stream.Refused) // the plan made the listener opaque: the connection is of the past
}

func (h handler) Refused(p *conn.Peer, status int, detail string) {
	if s := h.l.Rules().HTTP; s != nil {
		s.Refused(p, status, detail)
		return
	}
	h.l.o.Recorder.Proxy.ProtocolErrors.Inc()
}

// flagsOf returns the response flags for a failed dial.
func flagsOf(err error) telemetry.Flags { return stack.DialFlags(err) }
