// Package route decides which rule a request follows.
package route

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Table is a route table made ready to run. It is immutable.
type Table struct{ plan *plan.RouteTable }

// Host is one virtual host of a table.
type Host struct{ plan *plan.VirtualHost }

// Route is one rule of a host.
type Route struct{ plan *plan.Route }

// Result is what Find found. Host nil: no host matched, the table's Otherwise applies. Route nil: no rule matched (NR).
type Result struct {
	Host  *Host
	Route *Route
}

// Build makes rt ready to run.
func Build(rt *plan.RouteTable) (*Table, error) { return &Table{plan: rt}, nil }

// Plan returns what the table was built from.
func (t *Table) Plan() *plan.RouteTable { return t.plan }

// Find returns the rule for a request. host is canonical, without port.
func (t *Table) Find(host []byte, r *message.Request) Result { return Result{} }

// Explain returns every step of Find in words.
func (t *Table) Explain(host []byte, r *message.Request) []Step { return nil }

// Step is one candidate and its fate.
type Step struct {
	Host    string
	Index   int
	Name    string
	Origin  ident.Origin
	Matched bool
	Reason  string
}

// Plan returns what the host was built from.
func (h *Host) Plan() *plan.VirtualHost { return h.plan }

// Plan returns what the route was built from.
func (r *Route) Plan() *plan.Route { return r.plan }

// Index returns the place of the route in its host.
func (r *Route) Index() int { return 0 }

// Pick returns an index into Forward, by weight, from a uniformly random number; -1 when no destination has a share.
func (r *Route) Pick(rnd uint64) int { return 0 }

// ApplyRewrite changes the path and the authority of req as the route says. The new path is appended to buf; the
// returned slice is buf, possibly grown, and must stay untouched as long as req is used. ok is false when the rewritten
// path would not be canonical ("/x.." under prefix "/x"): answer 400.
func (r *Route) ApplyRewrite(req *message.Request, buf []byte) (out []byte, ok bool) {
	return buf, true
}

// AppendLocation appends the Location of the route's Redirect for req.
func (r *Route) AppendLocation(dst []byte, req *message.Request) (out []byte, ok bool) {
	return dst, true
}
