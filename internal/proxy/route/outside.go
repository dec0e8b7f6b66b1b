package route

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// ErrOutside means that an address outside the mesh may not be reached.
var ErrOutside = errors.New("the mesh's policy closes the network of this address")

// Outside decides which addresses outside the mesh may be reached. It is immutable.
type Outside struct {
	plan     *plan.Outside
	networks []network // longest first
	some     bool      // there are addresses that may be reached
}

type network struct {
	netip.Prefix
	*plan.OutsideNetwork
}

// NewOutside returns nil for nil: the fate of unknown hosts says it all.
func NewOutside(p *plan.Outside) (*Outside, error) {
	if p == nil {
		return nil, nil
	}
	o := &Outside{plan: p, some: p.Otherwise == plan.Passthrough}
	for i := range p.Networks {
		n := &p.Networks[i]
		prefix, err := netip.ParsePrefix(n.Network)
		if err != nil {
			return nil, fmt.Errorf("outside the mesh: %q is not a network", n.Network)
		}
		if n.Otherwise != plan.Passthrough && n.Otherwise != plan.Block {
			return nil, fmt.Errorf("outside the mesh: %q can't be done with %s", n.Otherwise, n.Network)
		}
		o.networks = append(o.networks, network{prefix.Masked(), n})
		o.some = o.some || n.Otherwise == plan.Passthrough
	}
	sort.SliceStable(o.networks, func(i, j int) bool { return o.networks[i].Bits() > o.networks[j].Bits() })
	return o, nil
}

// Plan returns what o was made from.
func (o *Outside) Plan() *plan.Outside { return o.plan }

// Fate returns what happens to what is for an address, and who says so: that of the longest network which has it. The zero
// address is that of a name that nobody has resolved: it may pass when any address may, as Reaches is asked once it is known.
func (o *Outside) Fate(a netip.Addr) (plan.Otherwise, *ident.Origin) {
	if !a.IsValid() {
		if o.some {
			return plan.Passthrough, nil
		}
		return plan.Block, &o.plan.Origin
	}
	a = a.Unmap()
	for i := range o.networks {
		if n := &o.networks[i]; n.Contains(a) {
			return n.Otherwise, &n.Origin
		}
	}
	return o.plan.Otherwise, &o.plan.Origin
}

// Reaches returns nil for an address that may be reached, else an ErrOutside that says who closes it.
func (o *Outside) Reaches(a netip.Addr) error {
	fate, by := o.Fate(a)
	if fate == plan.Passthrough {
		return nil
	}
	if by.IsZero() {
		return fmt.Errorf("%w (%s)", ErrOutside, a)
	}
	return fmt.Errorf("%w (%s: %s)", ErrOutside, a, by)
}
