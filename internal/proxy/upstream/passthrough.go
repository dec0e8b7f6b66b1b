package upstream

import (
	"container/list"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// PassthroughName is the name of the clusters that dial a host as it is written (Istio's name for them).
const PassthroughName = "PassthroughCluster"

// Bounds of the passthrough clusters: clients choose the hosts, so how many are remembered must not be theirs to choose.
const (
	passthroughMost = 256
	passthroughIdle = 5 * time.Minute
)

// passthrough is the clusters for hosts that the mesh does not know, the one used last in front.
type passthrough struct {
	set *Set

	mu    sync.Mutex
	byKey map[passKey]*list.Element
	order list.List // of *passed
}

type hostPort struct {
	host string
	port int
}

// Within decides which addresses may be dialled for clients: nil for those that may, else an error that says why not. It is a
// pointer: clusters are told apart by it, so that no connection is used under other rules than it was made under.
type Within interface {
	Reaches(netip.Addr) error
}

// passKey is what tells passthrough clusters apart.
type passKey struct {
	hostPort
	within Within
}

type passed struct {
	key     passKey
	cluster *Cluster
	used    int64 // Set.clock
}

func (p *passthrough) init(s *Set) {
	p.set = s
	p.byKey = make(map[passKey]*list.Element)
}

// Passthrough returns a cluster that dials a host as it is written, in plaintext, at addresses that within lets through; nil: at
// any. Names are resolved at each dial. At most 256 are remembered; one that is forgotten works on, but keeps no connection.
func (s *Set) Passthrough(host string, port int, within Within) *Cluster {
	p := &s.passthrough
	k := passKey{hostPort{host, port}, within}
	p.mu.Lock()
	if el := p.byKey[k]; el != nil {
		x := el.Value.(*passed)
		x.used = s.clock()
		p.order.MoveToFront(el)
		p.mu.Unlock()
		return x.cluster
	}
	c := &Cluster{set: s, within: within}
	c.makeLocked(&plan.Cluster{Name: PassthroughName, Host: host, Port: port, Protocol: ident.Detect, TLS: plan.TLSOff},
		[]plan.Endpoint{{Address: net.JoinHostPort(host, strconv.Itoa(port))}}) // nobody else has it yet
	s.coarse.Store(int64(s.now().Sub(s.base)))
	p.byKey[k] = p.order.PushFront(&passed{key: k, cluster: c, used: s.clock()})
	var oldest *Cluster
	if p.order.Len() > passthroughMost {
		oldest = p.forget(p.order.Back())
	}
	p.mu.Unlock()
	if oldest != nil {
		oldest.retire()
	}
	s.wake()
	return c
}

// forget takes a cluster out. p.mu is held.
func (p *passthrough) forget(el *list.Element) *Cluster {
	x := p.order.Remove(el).(*passed)
	delete(p.byKey, x.key)
	return x.cluster
}

// expire forgets clusters that nobody used for a while, and reports whether any are left.
func (p *passthrough) expire() bool {
	now := p.set.clock()
	var old []*Cluster
	p.mu.Lock()
	for el := p.order.Back(); el != nil; {
		x, prev := el.Value.(*passed), el.Prev()
		if now-x.used < int64(passthroughIdle) {
			break
		}
		if k := x.cluster.running(); k == nil || k.counted.requests.Load() == 0 {
			old = append(old, p.forget(el))
		}
		el = prev
	}
	more := p.order.Len() > 0
	p.mu.Unlock()
	for _, c := range old {
		c.retire()
	}
	return more
}

// each calls f with every cluster there is.
func (p *passthrough) each(f func(*Cluster)) {
	p.mu.Lock()
	all := make([]*Cluster, 0, p.order.Len())
	for el := p.order.Front(); el != nil; el = el.Next() {
		all = append(all, el.Value.(*passed).cluster)
	}
	p.mu.Unlock()
	for _, c := range all {
		f(c)
	}
}
