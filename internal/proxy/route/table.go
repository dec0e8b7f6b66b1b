// Package route decides which rule a request follows.
//
// In: a plan.RouteTable, once for each plan; then, for each request, its canonical host and head. Out: the virtual host
// and the route, or what was missing, and what the route makes of the request line (rewrite, redirect, weighted pick).
// It is pure, holds no goroutine, and Find allocates nothing. A Table is immutable; any number of goroutines may use it.
//
// The first route of a host that matches wins, as in Istio and Envoy. An index over literal paths finds that route
// without trying all of them; the order of the rules stays what decides (see index). The tools that explain a decision
// run Explain over the same conditions.
//
// What happens next (faults, retries, header changes, which cluster) belongs to internal/proxy/stack; who may call at
// all belongs to internal/proxy/authz.
package route

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Table is a route table made ready to run. It is immutable.
type Table struct {
	plan  *plan.RouteTable
	exact dictionary[*Host]
	wild  dictionary[*Host] // by ".suffix"
	sizes [4]uint64         // bits: how long the suffixes are, 255 for those of more
	any   *Host             // "*"
}

// Host is one virtual host of a table.
type Host struct {
	plan   *plan.VirtualHost
	routes []Route
	index  *index // nil for a host with few routes
}

// Result is what Find found. Host nil: no host matched and the table's Otherwise applies. Route nil with a Host: no
// rule of it matched (404, flag NR).
type Result struct {
	Host  *Host
	Route *Route
}

// Build makes rt ready to run. It keeps pointers into rt, which must not change afterwards. The error names the rule
// that cannot be used.
func Build(rt *plan.RouteTable) (*Table, error) {
	exact, wild := 0, 0
	for i := range rt.Hosts {
		for _, d := range rt.Hosts[i].Domains {
			if strings.HasPrefix(d, "*") {
				wild++
			} else {
				exact++
			}
		}
	}
	t := &Table{plan: rt, exact: newDictionary[*Host](exact), wild: newDictionary[*Host](wild)}
	hosts := make([]Host, len(rt.Hosts))
	for i := range rt.Hosts {
		h := &hosts[i]
		if err := h.build(&rt.Hosts[i]); err != nil {
			return nil, fmt.Errorf("route table %s: %w", rt.Name, err)
		}
		for _, d := range h.plan.Domains {
			if err := t.add(d, h); err != nil {
				return nil, fmt.Errorf("route table %s: host %s: %w", rt.Name, h.plan.Name, err)
			}
		}
	}
	return t, nil
}

func (t *Table) add(domain string, h *Host) error {
	var other *Host
	switch {
	case domain == "*":
		other, t.any = t.any, h
	case strings.HasPrefix(domain, "*."):
		other = t.wild.put(domain[1:], h)
		n := min(len(domain)-1, 255)
		t.sizes[n/64] |= 1 << (n % 64)
	case domain == "" || strings.Contains(domain, "*"):
		return fmt.Errorf("domain %q: want a host, *.SUFFIX or *", domain)
	default:
		other = t.exact.put(domain, h)
	}
	if other != nil {
		return fmt.Errorf("domain %q stands also in host %s", domain, other.plan.Name)
	}
	return nil
}

func (h *Host) build(vh *plan.VirtualHost) error {
	h.plan = vh
	h.routes = make([]Route, len(vh.Routes))
	for i := range vh.Routes {
		if err := h.routes[i].build(&vh.Routes[i], h, i); err != nil {
			return fmt.Errorf("host %s: route %d %s: %w", vh.Name, i, vh.Routes[i].Origin, err)
		}
	}
	if len(h.routes) > indexFrom {
		h.index = newIndex(h.routes)
	}
	return nil
}

// Plan returns what the table was built from.
func (t *Table) Plan() *plan.RouteTable { return t.plan }

// Plan returns what the host was built from.
func (h *Host) Plan() *plan.VirtualHost { return h.plan }

// Routes returns the number of routes of the host.
func (h *Host) Routes() int { return len(h.routes) }

// Route returns the i-th route of the host.
func (h *Host) Route(i int) *Route { return &h.routes[i] }

// Find returns the rule for a request. host is canonical and without port (message.Request.Host). It does not allocate.
func (t *Table) Find(host []byte, r *message.Request) Result {
	h := t.Host(host)
	if h == nil {
		return Result{}
	}
	return Result{Host: h, Route: h.find(r)}
}

// Host returns the virtual host that serves host: an exact domain before the longest wildcard before "*"; nil for none.
func (t *Table) Host(host []byte) *Host {
	if i := t.exact.find(host); i >= 0 {
		return t.exact.entries[i].value
	}
	if len(t.wild.entries) > 0 {
		// The first dot from the left gives the longest suffix. "*.a" asks for at least one byte before ".a".
		for i := 1; i < len(host); i++ {
			n := bytes.IndexByte(host[i:], '.')
			if n < 0 {
				break
			}
			i += n
			if size := min(len(host)-i, 255); t.sizes[size/64]&(1<<(size%64)) == 0 {
				continue
			}
			if at := t.wild.find(host[i:]); at >= 0 {
				return t.wild.entries[at].value
			}
		}
	}
	return t.any
}

func (h *Host) find(r *message.Request) *Route {
	if h.index != nil {
		if i := h.index.find(h.routes, r); i >= 0 {
			return &h.routes[i]
		}
		return nil
	}
	for i := range h.routes {
		if h.routes[i].match.holds(r) {
			return &h.routes[i]
		}
	}
	return nil
}
