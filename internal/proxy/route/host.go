package route

import (
	"fmt"
	"sync/atomic"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// Host is one virtual host of a table. That of a packed table is opened with its first request: a proxy knows many hosts and is
// asked for few.
type Host struct {
	byAddress bool // plan.VirtualHost.ByAddress
	packed    packed.Host
	opened    atomic.Pointer[rules]
	kept      atomic.Pointer[any]
}

// rules are what a host consists of.
type rules struct {
	plan   *plan.VirtualHost
	routes []Route
	index  *index // nil for a host with few routes
}

func newRules(h *Host, vh *plan.VirtualHost) (*rules, error) {
	r := &rules{plan: vh, routes: make([]Route, len(vh.Routes))}
	for i := range vh.Routes {
		if err := r.routes[i].build(&vh.Routes[i], h, i); err != nil {
			return nil, fmt.Errorf("host %s: route %d %s: %w", vh.Name, i, vh.Routes[i].Origin, err)
		}
	}
	if len(r.routes) > indexFrom {
		r.index = newIndex(r.routes)
	}
	return r, nil
}

func (h *Host) rules() *rules {
	if r := h.opened.Load(); r != nil {
		return r
	}
	r, err := newRules(h, h.packed.Open())
	if err != nil {
		panic(fmt.Sprintf("a host was taken that can't be built: %v", err)) // BuildPacked has built it once
	}
	if h.opened.CompareAndSwap(nil, r) {
		return r
	}
	return h.opened.Load() // there is one of each route, whoever asks
}

// Name returns the name of the host. It opens nothing.
func (h *Host) Name() string {
	if r := h.opened.Load(); r != nil {
		return r.plan.Name
	}
	return h.packed.Name()
}

// Plan returns what the host was built from.
func (h *Host) Plan() *plan.VirtualHost { return h.rules().plan }

// Routes returns the number of routes of the host.
func (h *Host) Routes() int { return len(h.rules().routes) }

// Route returns the i-th route of the host.
func (h *Host) Route(i int) *Route { return &h.rules().routes[i] }

// Keep returns what its user keeps with the host, for as long as there is the table: what the first call made.
func (h *Host) Keep(first func() any) any {
	if v := h.kept.Load(); v != nil {
		return *v
	}
	v := first()
	if h.kept.CompareAndSwap(nil, &v) {
		return v
	}
	return *h.kept.Load()
}

func (h *Host) find(r *message.Request) *Route {
	rules := h.rules()
	if rules.index != nil {
		if i := rules.index.find(rules.routes, r); i >= 0 {
			return &rules.routes[i]
		}
		return nil
	}
	for i := range rules.routes {
		if rules.routes[i].match.holds(r) {
			return &rules.routes[i]
		}
	}
	return nil
}
