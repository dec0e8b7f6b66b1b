package placement

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/model"
)

// firstPort is the first port that Offline gives out.
const firstPort = 20000

// Offline places cfg without asking anybody which ports are free: on 127.0.0.1, from port 20000 upward in sorted order;
// a gateway's server on GatewayPort of its number. Equal configurations get equal placements. Every instance is ready.
func Offline(cfg *model.Config) (Placement, error) { return OfflineAfter(cfg, Placement{}) }

// OfflineAfter is Offline for a configuration that changed: what prev placed stays where it is.
func OfflineAfter(cfg *model.Config, prev Placement) (Placement, error) {
	n := counter{next: firstPort, taken: map[string]bool{}}
	for i := range prev.Instances {
		in := &prev.Instances[i]
		n.taken[in.Forward] = true
		for _, addr := range in.Inbound {
			n.taken[addr] = true
		}
		for _, addr := range in.App {
			n.taken[addr] = true
		}
		for _, addr := range in.Local {
			n.taken[addr] = true
		}
	}
	for i := range prev.Gateways {
		for _, addr := range prev.Gateways[i].Binds {
			n.taken[addr] = true
		}
	}
	// What programs that are not ours listen on is not free either.
	for i := range cfg.Workloads {
		if wl := &cfg.Workloads[i]; wl.Run == nil {
			for j := range wl.Ports {
				n.taken[loopback(wl.Ports[j].Port)] = true
			}
		}
	}
	p, err := Place(cfg, prev, n.alloc)
	for i := range p.Instances {
		p.Instances[i].Ready = true
	}
	return p, err
}

// counter gives out one port after the other.
type counter struct {
	next  int
	taken map[string]bool
}

var errFull = errors.New("all ports up to 65535 are given out; split the folder")

func (n *counter) alloc(hint string) (string, error) {
	if kind, what, _ := strings.Cut(hint, "/"); kind == "gateway" || kind == "own" {
		if port, err := strconv.Atoi(what[strings.LastIndexByte(what, '/')+1:]); err == nil {
			if addr := loopback(GatewayPort(port)); n.take(addr) {
				return addr, nil
			}
		}
	}
	for n.next <= 65535 {
		addr := loopback(n.next)
		n.next++
		if n.take(addr) {
			return addr, nil
		}
	}
	return "", errFull
}

func (n *counter) take(addr string) bool {
	if n.taken[addr] {
		return false
	}
	n.taken[addr] = true
	return true
}

func loopback(port int) string {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)).String()
}
