// Package route decides which rule a request follows.
//
// In: a plan.RouteTable, once for each plan; then, for each request, its canonical host and head. Out: the virtual host
// and the route, or what was missing, and what the route makes of the request line (rewrite, redirect, weighted pick).
// It is pure, holds no goroutine, and Find allocates nothing, but for the first request to a host of a packed table. A Table is
// immutable for all that can be seen; any number of goroutines may use it.
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
	"iter"
	"net/netip"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// Table is a route table made ready to run. It is immutable.
type Table struct {
	plan   *plan.RouteTable
	packed packed.Routes
	exact  dictionary[*Host]
	wild   dictionary[*Host] // by ".suffix"
	sizes  [4]uint64         // bits: how long the suffixes are, 255 for those of more
	any    *Host             // "*"
	// byAddress is set when some host is told by the address that a request was going to.
	byAddress bool
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
	t := newTable(rt, func(yield func(string) bool) {
		for i := range rt.Hosts {
			for _, d := range rt.Hosts[i].Domains {
				if !yield(d) {
					return
				}
			}
		}
	})
	hosts := make([]Host, len(rt.Hosts))
	for i := range rt.Hosts {
		h := &hosts[i]
		r, err := newRules(h, &rt.Hosts[i])
		if err != nil {
			return nil, fmt.Errorf("route table %s: %w", rt.Name, err)
		}
		h.opened.Store(r)
		if err := t.enter(h, r.plan); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// BuildPacked is Build for a table that stays packed: each host is built once here, to find its mistakes, and then again with its
// first request. check may refuse a host, too.
func BuildPacked(p packed.Routes, check func(*plan.VirtualHost) error) (*Table, error) {
	n := 0
	t := newTable(packed.Bare(p), func(yield func(string) bool) {
		for h := range packed.Hosts(p) {
			n++
			for d := range packed.Domains(h) {
				if !yield(d) {
					return
				}
			}
		}
	})
	t.packed = p
	hosts := make([]Host, 0, n)
	for piece := range packed.Hosts(p) {
		hosts = append(hosts, Host{})
		h, vh := &hosts[len(hosts)-1], piece.Open()
		h.packed = piece
		if err := check(vh); err != nil {
			return nil, fmt.Errorf("route table %s: host %s: %w", t.plan.Name, vh.Name, err)
		}
		if _, err := newRules(h, vh); err != nil {
			return nil, fmt.Errorf("route table %s: %w", t.plan.Name, err)
		}
		if err := t.enter(h, vh); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// newTable makes room for domains.
func newTable(rt *plan.RouteTable, domains iter.Seq[string]) *Table {
	exact, wild := 0, 0
	for d := range domains {
		if strings.HasPrefix(d, "*") {
			wild++
		} else {
			exact++
		}
	}
	return &Table{plan: rt, exact: newDictionary[*Host](exact), wild: newDictionary[*Host](wild)}
}

func (t *Table) enter(h *Host, vh *plan.VirtualHost) error {
	h.byAddress = vh.ByAddress
	t.byAddress = t.byAddress || vh.ByAddress
	for _, d := range vh.Domains {
		if err := t.add(d, h); err != nil {
			return fmt.Errorf("route table %s: host %s: %w", t.plan.Name, vh.Name, err)
		}
	}
	return nil
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
		return fmt.Errorf("domain %q stands also in host %s", domain, other.Name())
	}
	return nil
}

// Plan returns what the table was built from; without the hosts when it is packed.
func (t *Table) Plan() *plan.RouteTable { return t.plan }

// Packed returns the piece that BuildPacked built the table from; "" for Build.
func (t *Table) Packed() packed.Routes { return t.packed }

// Find returns the rule for a request. host is canonical and without port (message.Request.Host). It does not allocate.
func (t *Table) Find(host []byte, r *message.Request) Result {
	h := t.Host(host)
	if h == nil {
		return Result{}
	}
	return Result{Host: h, Route: h.find(r)}
}

// FindCaptured is Find for a captured request, which was going to an address: that decides, where a host is told by it or the
// request names one that is (plan.VirtualHost.ByAddress).
func (t *Table) FindCaptured(target netip.Addr, host []byte, r *message.Request) Result {
	h := t.Host(host)
	if t.byAddress {
		var buf [64]byte
		if i := t.exact.find(target.Unmap().AppendTo(buf[:0])); i >= 0 {
			if at := t.exact.entries[i].value; at.byAddress || h != nil && h.byAddress {
				h = at
			}
		}
	}
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
