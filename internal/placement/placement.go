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
//	gateway/NS/NAME/PORT     a server port of the shared gateway; GatewayPort is the number to take
//	own/NS/NAME/PORT         a server port of a gateway of its own; GatewayPort is the number to try first
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

// Place places every workload, the shared gateway when a Gateway selects it, and a gateway for each Gateway API Gateway. What prev placed keeps its addresses and its
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
		if strings.HasPrefix(s.Host, "*") || s.Resolution == model.ByRequest {
			continue // there is no one place that a listener could stand for
		}
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
	own, err := p.own(prev.Gateways)
	if err != nil {
		return Placement{}, err
	}
	out.Gateways = append(out.Gateways, own...)
	slices.SortFunc(out.Gateways, func(a, b model.GatewayInstance) int { return a.Name.Compare(b.Name) })
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
	ports = append(ports, p.ingress(wl)...)
	slices.Sort(ports)
	var err error
	for _, port := range slices.Compact(ports) {
		number := strconv.Itoa(port)
		if in.Inbound[port], err = p.keep(before.Inbound[port], "inbound", wl.Name, number); err != nil {
			return in, err
		}
		if !declares(wl, port) { // a Sidecar offers it in front of another port
			continue
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

func declares(wl *model.Workload, port int) bool {
	return slices.ContainsFunc(wl.Ports, func(p model.WorkloadPort) bool { return p.Port == port })
}

// ingress returns the ports that Sidecars put in the place of the workload's. Which of several Sidecars rules is not decided
// here: an address too many costs nothing.
func (p *placer) ingress(wl *model.Workload) []int {
	var out []int
	for i := range p.cfg.Sidecars {
		s := &p.cfg.Sidecars[i]
		if s.Name.Namespace != wl.Name.Namespace && s.Name.Namespace != ident.RootNamespace || !model.HasLabels(wl.Labels, s.Selector) {
			continue
		}
		for _, in := range s.Ingress {
			if in.Protocol != ident.UDP {
				out = append(out, in.Port)
			}
		}
	}
	return out
}

// gateway places the shared gateway; nil when no Gateway selects it.
func (p *placer) gateway(prev []model.GatewayInstance) (*model.GatewayInstance, error) {
	g := IngressGateway()
	var doors []*model.Gateway
	for i := range p.cfg.Gateways {
		if door := &p.cfg.Gateways[i]; !door.Own && model.HasLabels(g.Labels, door.Selector) {
			doors = append(doors, door)
		}
	}
	if doors == nil {
		return nil, nil
	}
	var err error
	g.Binds, err = p.binds("gateway", g.Name, doors, prev)
	return &g, err
}

// labelGatewayName is on what runs for a Gateway API Gateway (GEP-1762).
const labelGatewayName = "gateway.networking.k8s.io/gateway-name"

// ownSuffix ends the names of the gateways of Gateway API Gateways.
const ownSuffix = "-gateway"

// own places a gateway for each Gateway API Gateway.
func (p *placer) own(prev []model.GatewayInstance) ([]model.GatewayInstance, error) {
	out, doors := ownGateways(p.cfg)
	for i := range out {
		var err error
		if out[i].Binds, err = p.binds("own", out[i].Name, doors[i:i+1], prev); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Gateways returns every gateway that there is under cfg, without binds. The shared one is always among them.
func Gateways(cfg *model.Config) []model.GatewayInstance {
	own, _ := ownGateways(cfg)
	return append([]model.GatewayInstance{IngressGateway()}, own...)
}

// ownGateways returns the proxies of Gateway API Gateways without binds, and the Gateway of each.
func ownGateways(cfg *model.Config) (out []model.GatewayInstance, doors []*model.Gateway) {
	taken := map[ident.Name]bool{IngressGateway().Name: true}
	for i := range cfg.Workloads {
		taken[cfg.Workloads[i].Name] = true
	}
	for i := range cfg.Gateways {
		if cfg.Gateways[i].Own {
			doors = append(doors, &cfg.Gateways[i])
		}
	}
	slices.SortStableFunc(doors, func(a, b *model.Gateway) int { return a.Name.Compare(b.Name) })
	for _, door := range doors {
		name := ident.Name{Namespace: door.Name.Namespace, Name: door.Name.Name + ownSuffix}
		for taken[name] {
			name.Name += ownSuffix
		}
		taken[name] = true
		labels := map[string]string{labelGatewayName: door.Name.Name}
		for k, v := range door.ProxyLabels {
			labels[k] = v
		}
		out = append(out, model.GatewayInstance{
			Name: name, Labels: labels, For: door.Name,
			Identity: ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: name.Namespace, ServiceAccount: name.Name},
		})
	}
	return out, doors
}

// binds gives each port of some Gateways an address. One whose servers are all broken gets none.
func (p *placer) binds(kind string, name ident.Name, doors []*model.Gateway, prev []model.GatewayInstance) (map[int]string, error) {
	var ports []int
	for _, door := range doors {
		for i := range door.Servers {
			if s := &door.Servers[i]; s.Protocol != ident.UDP && s.Broken == "" {
				ports = append(ports, s.Port)
			}
		}
	}
	var before map[int]string
	for i := range prev {
		if prev[i].Name == name {
			before = prev[i].Binds
		}
	}
	slices.Sort(ports)
	out := make(map[int]string, len(ports))
	for _, port := range slices.Compact(ports) {
		bind, err := p.keep(before[port], kind, name, strconv.Itoa(port))
		if err != nil {
			return nil, err
		}
		out[port] = at(bind, doors)
	}
	return out, nil
}

// at moves a bind to the loopback address that a Gateway asks for. One that asks for several listens on the first.
func at(bind string, doors []*model.Gateway) string {
	given, err := netip.ParseAddrPort(bind)
	if err != nil {
		return bind
	}
	for _, door := range doors {
		for _, a := range door.Addresses {
			if want, err := netip.ParseAddr(a); err == nil && want.IsLoopback() {
				return netip.AddrPortFrom(want, given.Port()).String()
			}
		}
	}
	return bind
}
