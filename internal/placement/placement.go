// Package placement decides where the proxies and programs of one machine listen.
//
// In come the configuration, the placement before it and a source of free addresses; out goes a Placement in which
// everything that was placed before keeps its addresses. Asking the operating system for a free port is the caller's
// part: the package itself is pure, and with Offline deterministic, which is how `malha compile` and a control plane
// without a supervisor get theirs.
package placement

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Placement is where everything listens. It is immutable once made.
type Placement struct {
	Instances []model.Instance        // sorted by workload
	Gateways  []model.GatewayInstance // sorted by name
}

// Alloc returns a free IP:port. hint says what for, and is unique within a placement:
//
//	inbound/NS/NAME/PORT     the sidecar's listener for a workload port
//	app/NS/NAME/PORT         where a program that we start listens
//	forward/NS/NAME          the sidecar's forward proxy
//	local/NS/NAME/HOST:PORT  the explicit local listener for a service port
//	gateway/NS/NAME/PORT     a gateway's server port; GatewayPort is the number to try first
type Alloc func(hint string) (addr string, err error)

// The one gateway of a machine, with the name, labels and service account that Istio's has: Gateways select it as written.
const (
	gatewayName    = "istio-ingressgateway"
	gatewayAccount = "istio-ingressgateway-service-account"
)

// IngressGateway returns the name, labels and identity of the one gateway, without binds.
func IngressGateway() model.GatewayInstance {
	return model.GatewayInstance{
		Name:   ident.Name{Namespace: ident.RootNamespace, Name: gatewayName},
		Labels: map[string]string{"app": gatewayName, "istio": "ingressgateway"},
		Identity: ident.Identity{
			TrustDomain: ident.DefaultTrustDomain, Namespace: ident.RootNamespace, ServiceAccount: gatewayAccount,
		},
	}
}

// GatewayPort returns the port to bind for a Gateway's server port: itself, or 8000 more for a port that needs
// privileges (80 is 8080, 443 is 8443).
func GatewayPort(server int) int {
	if server < 1024 {
		return 8000 + server
	}
	return server
}

// Place places every workload and, when a Gateway selects it, the gateway. What prev placed keeps its addresses and its
// readiness; a new instance is not ready. On an error of alloc nothing is placed.
func Place(cfg *model.Config, prev Placement, alloc Alloc) (Placement, error) {
	p := placer{
		cfg: cfg, alloc: alloc, before: make(map[ident.Name]*model.Instance, len(prev.Instances)),
		refs: make(map[string][]model.ServiceRef),
	}
	for i := range prev.Instances {
		p.before[prev.Instances[i].Workload] = &prev.Instances[i]
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Ports {
			if s.Ports[j].Protocol != ident.UDP {
				p.refs[s.Name.Namespace] = append(p.refs[s.Name.Namespace], model.ServiceRef{Host: s.Host, Port: s.Ports[j].Port})
			}
		}
	}
	for ns, refs := range p.refs {
		slices.SortFunc(refs, func(a, b model.ServiceRef) int {
			return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
		})
		p.refs[ns] = slices.Compact(refs)
	}

	workloads := make([]*model.Workload, len(cfg.Workloads))
	for i := range cfg.Workloads {
		workloads[i] = &cfg.Workloads[i]
	}
	slices.SortStableFunc(workloads, func(a, b *model.Workload) int { return a.Name.Compare(b.Name) })
	workloads = slices.CompactFunc(workloads, func(a, b *model.Workload) bool { return a.Name == b.Name })
	var out Placement
	for _, wl := range workloads {
		in, err := p.instance(wl)
		if err != nil {
			return Placement{}, err
		}
		out.Instances = append(out.Instances, in)
	}
	g, err := p.gateway(prev.Gateways)
	if err != nil {
		return Placement{}, err
	}
	if g != nil {
		out.Gateways = []model.GatewayInstance{*g}
	}
	return out, nil
}

type placer struct {
	cfg    *model.Config
	alloc  Alloc
	before map[ident.Name]*model.Instance
	// refs are the service ports by namespace, sorted. A workload is told of those in its own, as on Kubernetes, so it gets a
	// listener for no others: their number is a product.
	refs map[string][]model.ServiceRef
}

// keep returns the address that was there before, or a new one.
func (p *placer) keep(before, kind string, of ident.Name, what string) (string, error) {
	if before != "" {
		return before, nil
	}
	hint := kind + "/" + of.String()
	if what != "" {
		hint += "/" + what
	}
	addr, err := p.alloc(hint)
	if err != nil {
		return "", fmt.Errorf("no address for %s: %w", hint, err)
	}
	return addr, nil
}

func (p *placer) instance(wl *model.Workload) (model.Instance, error) {
	before := p.before[wl.Name]
	if before == nil {
		before = &model.Instance{}
	}
	in := model.Instance{
		Workload: wl.Name,
		Ready:    before.Ready,
		Inbound:  make(map[int]string, len(wl.Ports)),
		App:      make(map[int]string, len(wl.Ports)),
		Local:    make(map[model.ServiceRef]string, len(p.refs[wl.Name.Namespace])),
	}
	var ports []int
	for i := range wl.Ports {
		if wl.Ports[i].Protocol != ident.UDP {
			ports = append(ports, wl.Ports[i].Port)
		}
	}
	slices.Sort(ports)
	var err error
	for _, port := range slices.Compact(ports) {
		number := strconv.Itoa(port)
		if in.Inbound[port], err = p.keep(before.Inbound[port], "inbound", wl.Name, number); err != nil {
			return in, err
		}
		if wl.Run == nil {
			ip, err := netip.ParseAddr(wl.Address)
			if err != nil {
				return in, fmt.Errorf("workload %s: address %q is not an IP address: %w", wl.Name, wl.Address, err)
			}
			in.App[port] = netip.AddrPortFrom(ip, uint16(port)).String()
			continue
		}
		// A program that was an address before must not keep that: it is told where to listen.
		appBefore := before.App[port]
		if strings.HasSuffix(appBefore, ":"+number) {
			appBefore = ""
		}
		if in.App[port], err = p.keep(appBefore, "app", wl.Name, number); err != nil {
			return in, err
		}
	}
	if in.Forward, err = p.keep(before.Forward, "forward", wl.Name, ""); err != nil {
		return in, err
	}
	for _, ref := range p.refs[wl.Name.Namespace] {
		what := ref.Host + ":" + strconv.Itoa(ref.Port)
		if in.Local[ref], err = p.keep(before.Local[ref], "local", wl.Name, what); err != nil {
			return in, err
		}
	}
	return in, nil
}

// gateway places the gateway; nil when no Gateway selects it.
func (p *placer) gateway(prev []model.GatewayInstance) (*model.GatewayInstance, error) {
	g := IngressGateway()
	var ports []int
	selected := false
	for i := range p.cfg.Gateways {
		door := &p.cfg.Gateways[i]
		if !model.HasLabels(g.Labels, door.Selector) {
			continue
		}
		selected = true
		for j := range door.Servers {
			if door.Servers[j].Protocol != ident.UDP {
				ports = append(ports, door.Servers[j].Port)
			}
		}
	}
	if !selected {
		return nil, nil
	}
	var before map[int]string
	for i := range prev {
		if prev[i].Name == g.Name {
			before = prev[i].Binds
		}
	}
	slices.Sort(ports)
	g.Binds = make(map[int]string, len(ports))
	for _, port := range slices.Compact(ports) {
		bind, err := p.keep(before[port], "gateway", g.Name, strconv.Itoa(port))
		if err != nil {
			return nil, err
		}
		g.Binds[port] = bind
	}
	return &g, nil
}
