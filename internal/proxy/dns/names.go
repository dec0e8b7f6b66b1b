package dns

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
)

// Names is what is answered here: addresses by name. It is immutable.
type Names struct {
	exact  map[string]*addresses
	suffix map[string]*addresses // of "*.example.com": "example.com"
}

type addresses struct{ v4, v6 []netip.Addr }

// NewNames makes Names of a plan's records.
func NewNames(records []plan.NameRecord) (*Names, error) {
	n := &Names{exact: make(map[string]*addresses, len(records)), suffix: make(map[string]*addresses)}
	for i := range records {
		r := &records[i]
		a := &addresses{}
		for _, s := range r.Addresses {
			ip, err := netip.ParseAddr(s)
			if err != nil || ip.Zone() != "" {
				return nil, fmt.Errorf("name %s: %q is not an IP", r.Name, s)
			}
			if ip = ip.Unmap(); ip.Is4() {
				a.v4 = append(a.v4, ip)
			} else {
				a.v6 = append(a.v6, ip)
			}
		}
		if suffix, ok := strings.CutPrefix(r.Name, "*."); ok {
			n.suffix[suffix] = a
		} else {
			n.exact[r.Name] = a
		}
	}
	return n, nil
}

// find returns the addresses of a name in lower case and without the dot at its end; nil when it is not known. An exact one
// wins, then the longest suffix.
func (n *Names) find(name string) *addresses {
	if n == nil {
		return nil
	}
	if a := n.exact[name]; a != nil {
		return a
	}
	if len(n.suffix) == 0 {
		return nil
	}
	for rest := name; ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			return nil
		}
		if a := n.suffix[parent]; a != nil {
			return a
		}
		rest = parent
	}
}
