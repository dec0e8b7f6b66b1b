package linkerd

import (
	"encoding/json"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

type serverSpec struct {
	PodSelector              *labelSelector `json:"podSelector"`
	ExternalWorkloadSelector *labelSelector `json:"externalWorkloadSelector"`
	Port                     portRef        `json:"port"`
	ProxyProtocol            string         `json:"proxyProtocol"`
	AccessPolicy             string         `json:"accessPolicy"`
}

type labelSelector struct {
	MatchLabels      map[string]string     `json:"matchLabels"`
	MatchExpressions []selectorRequirement `json:"matchExpressions"`
}

type selectorRequirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values"`
}

// portRef is the number or the name of a port.
type portRef struct {
	Number int
	Name   string
}

// UnmarshalJSON reads what the schema has checked.
func (p *portRef) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &p.Number) == nil {
		return nil
	}
	return json.Unmarshal(b, &p.Name)
}

var serverType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[serverSpec](), map[reflect.Type]*manifest.Type{reflect.TypeFor[portRef](): manifest.TypeIntOrString})
})

const authorizationLater = "authorization by Linkerd's policies is not enforced by Malha yet: write accessPolicy: all-unauthenticated and guard the workload by an AuthorizationPolicy (security.istio.io)"

var serverFields = manifest.Join(
	manifest.Work("", "podSelector.matchLabels", "port", "proxyProtocol", "accessPolicy"),
	manifest.Refuse("use matchLabels", "podSelector.matchExpressions"),
	manifest.Refuse("use podSelector: a Workload with an address is found by its labels too", "externalWorkloadSelector"),
)

// server is a Server that waits for the workloads.
type server struct {
	object *manifest.Object
	spec   serverSpec
}

var proxyProtocols = map[string]ident.Protocol{
	"": ident.Detect, "unknown": ident.Detect, "HTTP/1": ident.HTTP, "HTTP/2": ident.HTTP2, "gRPC": ident.GRPC, "opaque": ident.TCP, "TLS": ident.TLS,
}

func (d *dialect) server(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	s := &server{object: o}
	at := o.Spec()
	if !decode(o, spec, &s.spec, r) {
		return
	}
	_, before := r.Len()
	if s.spec.PodSelector == nil {
		r.Error(manifest.CodeRequired, at, "add podSelector: {matchLabels: {app: …}}", "the Server selects nothing")
	}
	checkPort(s.spec.Port, at, r)
	if _, ok := proxyProtocols[s.spec.ProxyProtocol]; !ok {
		r.Error(manifest.CodeBadEnum, at.Field("proxyProtocol"), manifest.DidYouMean(s.spec.ProxyProtocol, []string{"unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"}), "unknown proxyProtocol %q", s.spec.ProxyProtocol)
	}
	switch p := s.spec.AccessPolicy; p {
	case "all-unauthenticated":
	case "":
		r.Error(manifest.CodeLinkerd, at, authorizationLater, "a Server without accessPolicy denies every request that no authorization allows")
	default:
		r.Error(manifest.CodeLinkerd, at.Field("accessPolicy"), authorizationLater, "accessPolicy %q is not supported by Malha yet", p)
	}
	if _, after := r.Len(); after == before {
		d.servers = append(d.servers, s)
	}
}

func checkPort(p portRef, at manifest.Cursor, r *manifest.Report) {
	switch here := at.Field("port"); {
	case !here.Set():
		r.Error(manifest.CodeRequired, at, "add port: 8080, or its name", "the port is missing")
	case p.Name == "" && (p.Number < 1 || p.Number > 65535):
		r.Error(manifest.CodeOutOfRange, here, "", "port %d is out of range: from 1 to 65535", p.Number)
	case p.Name != "" && !manifest.IsDNSLabel(p.Name):
		r.Error(manifest.CodePorts, here, "lower-case letters, digits and '-'", "%q is not a valid port name", p.Name)
	}
}

func (s *server) covers(w *model.Workload, p *model.WorkloadPort) bool {
	return w.Name.Namespace == s.object.Name.Namespace && model.HasLabels(w.Labels, s.spec.PodSelector.MatchLabels) &&
		(s.spec.Port.Name != "" && s.spec.Port.Name == p.Name || s.spec.Port.Name == "" && s.spec.Port.Number == p.Port)
}

// finishServers says what workloads speak. Of two Servers for a port the older one counts.
func (d *dialect) finishServers(out *model.Config, r *manifest.Report) {
	oldestFirst(d.servers, func(s *server) *manifest.Object { return s.object })
	type port struct {
		workload ident.Name
		port     int
	}
	taken := map[port]*server{}
	for _, s := range d.servers {
		found, behind := false, (*server)(nil)
		for i := range out.Workloads {
			w := &out.Workloads[i]
			for j := range w.Ports {
				if !s.covers(w, &w.Ports[j]) {
					continue
				}
				found = true
				id := port{w.Name, w.Ports[j].Port}
				if first := taken[id]; first != nil {
					behind = first
					continue
				}
				taken[id] = s
				if p := proxyProtocols[s.spec.ProxyProtocol]; p != ident.Detect {
					w.Ports[j].Protocol = p // opaque made the list our own
				}
			}
		}
		switch {
		case !found:
			r.Warning(manifest.CodeLinkerd, s.object.Spec(), "compare the labels and the port with those of your Workloads", "the Server selects no port of a workload")
		case behind != nil:
			r.Warning(manifest.CodeLinkerd, s.object.Spec(), "remove one of them", "the Server %s is older and selects some of the same ports: there this one has no effect", behind.object.Name)
		}
	}
}

type limitSpec struct {
	TargetRef *targetRef      `json:"targetRef"`
	Total     *rate           `json:"total"`
	Identity  *rate           `json:"identity"`
	Overrides []limitOverride `json:"overrides"`
}

type targetRef struct {
	Group     string `json:"group"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type rate struct {
	RequestsPerSecond uint32 `json:"requestsPerSecond"`
}

type limitOverride struct {
	RequestsPerSecond uint32      `json:"requestsPerSecond"`
	ClientRefs        []targetRef `json:"clientRefs"`
}

var limitType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[limitSpec](), nil) })

var limitFields = manifest.Work("", "targetRef.group", "targetRef.kind", "targetRef.name", "targetRef.namespace", "total", "identity", "overrides")

// limit is a rate limit that waits for its Server.
type limit struct {
	object *manifest.Object
	target string
	rules  []plan.RateLimitRule
}

func (d *dialect) limit(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	var in limitSpec
	at := o.Spec()
	if !decode(o, spec, &in, r) {
		return
	}
	_, before := r.Len()
	l := &limit{object: o}
	switch t, here := in.TargetRef, at.Field("targetRef"); {
	case t == nil:
		r.Error(manifest.CodeRequired, at, "add targetRef: {group: "+policyGroup+", kind: Server, name: …}", "the policy has no target")
	case t.Group != policyGroup || t.Kind != "Server":
		r.Error(manifest.CodeRateLimit, here, "name a Server of "+policyGroup, "a rate limit cannot be for a %s of %q", t.Kind, t.Group)
	case t.Name == "":
		r.Error(manifest.CodeRequired, here, "add name: …", "the target has no name")
	case t.Namespace != "" && t.Namespace != o.Name.Namespace:
		r.Error(manifest.CodeRateLimit, here.Field("namespace"), "put the policy into that namespace", "the Server is in another namespace")
	default:
		l.target = t.Name
	}
	perSecond := func(at manifest.Cursor, n uint32) uint32 {
		if n == 0 {
			r.Error(manifest.CodeOutOfRange, at.Field("requestsPerSecond"), "to deny everybody use an AuthorizationPolicy", "a rate is at least 1 request per second")
		}
		return n
	}
	second := plan.Duration(time.Second)
	if in.Total != nil {
		l.rules = append(l.rules, plan.RateLimitRule{Requests: perSecond(at.Field("total"), in.Total.RequestsPerSecond), Per: second, Origin: at.Field("total").Origin()})
	}
	if in.Identity != nil || len(in.Overrides) > 0 {
		rule := plan.RateLimitRule{By: plan.ByIdentity, Requests: math.MaxUint32, Per: second, Origin: at.Field("overrides").Origin()}
		if in.Identity != nil { // without it only those of the overrides are limited one by one
			rule.Requests, rule.Origin = perSecond(at.Field("identity"), in.Identity.RequestsPerSecond), at.Field("identity").Origin()
		}
		for i, o := range in.Overrides {
			here := at.Field("overrides").Index(i)
			over := plan.RateOverride{Requests: perSecond(here, o.RequestsPerSecond)}
			if len(o.ClientRefs) == 0 {
				r.Error(manifest.CodeRequired, here, "add clientRefs: [{kind: ServiceAccount, name: …}]", "the override is for nobody")
			}
			for j, c := range o.ClientRefs {
				over.Identities = append(over.Identities, client(c, l.object.Name.Namespace, here.Field("clientRefs").Index(j), r))
			}
			rule.Overrides = append(rule.Overrides, over)
		}
		l.rules = append(l.rules, rule)
	}
	if len(l.rules) == 0 {
		r.Error(manifest.CodeRateLimit, at, "add total: {requestsPerSecond: 100}", "the policy limits nothing")
	}
	if _, after := r.Len(); after == before {
		d.limits = append(d.limits, l)
	}
}

func client(c targetRef, namespace string, at manifest.Cursor, r *manifest.Report) ident.Identity {
	if c.Group != "" || c.Kind != "ServiceAccount" {
		r.Error(manifest.CodeRateLimit, at, "name a ServiceAccount: kind: ServiceAccount", "a client is a ServiceAccount, not a %s", c.Kind)
	}
	if !manifest.IsSubdomain(c.Name) {
		r.Error(manifest.CodeBadValue, at.Field("name"), "lower-case letters, digits, '-' and '.'", "%q cannot be the name of a service account", c.Name)
	}
	if c.Namespace != "" {
		namespace = c.Namespace
	}
	return ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: namespace, ServiceAccount: c.Name}
}

// finishLimits puts rate limits on the ports of their Servers. Of several for one Server the oldest counts.
func (d *dialect) finishLimits(out *model.Config, r *manifest.Report) {
	servers := make(map[ident.Name]*server, len(d.servers))
	for _, s := range d.servers {
		servers[s.object.Name] = s
	}
	oldestFirst(d.limits, func(l *limit) *manifest.Object { return l.object })
	first := map[*server]*limit{}
	for _, l := range d.limits {
		o := l.object
		s := servers[ident.Name{Namespace: o.Name.Namespace, Name: l.target}]
		switch {
		case s == nil:
			r.Error(manifest.CodeRateLimit, o.Spec().Field("targetRef").Field("name"), "add the Server, or correct the name", "there is no Server %s in namespace %s", l.target, o.Name.Namespace)
			out.Statuses = append(out.Statuses, l.accepted(false, "NoMatchingTarget", "there is no Server "+l.target))
			continue
		case first[s] != nil:
			by := first[s].object.Name
			r.Warning(manifest.CodeRateLimit, o.Spec().Field("targetRef"), "put the limits into one policy", "the policy %s is older and limits Server %s already: this one has no effect", by, l.target)
			out.Statuses = append(out.Statuses, l.accepted(false, "RateLimitReasonAlreadyExists", by.String()+" is older"))
			continue
		}
		first[s] = l
		out.Statuses = append(out.Statuses, l.accepted(true, "Accepted", ""))
		out.RateLimits = append(out.RateLimits, model.RateLimit{
			Meta: o.Meta(), Selector: s.spec.PodSelector.MatchLabels, Port: s.spec.Port.Number, PortName: s.spec.Port.Name, Alone: true,
			Limit: plan.RateLimit{Name: o.Kind + "/" + o.Name.String(), Rules: l.rules, Origin: o.Origin},
		})
	}
}

// accepted is the status of the policy. Linkerd's CRD takes it only with the target in it.
func (l *limit) accepted(ok bool, reason, message string) model.Status {
	st := accepted(l.object, ok, reason, message)
	st.Target, _ = json.Marshal(map[string]string{"group": policyGroup, "kind": "Server", "name": l.target}) // strings can always be written
	return st
}

type egressSpec struct {
	TrafficPolicy string          `json:"trafficPolicy"`
	Networks      []egressNetwork `json:"networks"`
}

type egressNetwork struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except"`
}

var egressType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[egressSpec](), nil) })

var egressFields = manifest.Work("", "trafficPolicy", "networks")

// globalEgress is the namespace whose EgressNetworks are for every namespace that has none (Linkerd's --global-egress-network-namespace).
const globalEgress = "linkerd-egress"

func egress(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	var in egressSpec
	at := o.Spec()
	if !decode(o, spec, &in, r) {
		return
	}
	e := model.Egress{Meta: o.Meta(), Global: o.Name.Namespace == globalEgress}
	switch in.TrafficPolicy {
	case "Allow":
		e.Otherwise = plan.Passthrough
	case "Deny":
		e.Otherwise = plan.Block
	case "":
		r.Error(manifest.CodeRequired, at, "add trafficPolicy: Allow, or Deny", "the EgressNetwork has no trafficPolicy")
	default:
		r.Error(manifest.CodeBadEnum, at.Field("trafficPolicy"), manifest.DidYouMean(in.TrafficPolicy, []string{"Allow", "Deny"}), "unknown trafficPolicy %q", in.TrafficPolicy)
	}
	for i, n := range in.Networks {
		here := at.Field("networks").Index(i)
		from, ok := prefix(n.CIDR, here.Field("cidr"), r)
		if !ok {
			continue
		}
		left := []netip.Prefix{from}
		for j, x := range n.Except {
			if cut, ok := prefix(x, here.Field("except").Index(j), r); ok {
				left = without(left, cut)
			}
		}
		if len(left) == 0 {
			r.Warning(manifest.CodeLinkerd, here, "remove it", "nothing is left of %s", n.CIDR)
		}
		for _, p := range left {
			e.Networks = append(e.Networks, p.String())
		}
	}
	if len(in.Networks) > 0 && len(e.Networks) == 0 {
		r.Error(manifest.CodeLinkerd, at.Field("networks"), "leave networks out to mean everything outside the mesh", "the EgressNetwork covers no address")
	}
	out.Statuses = append(out.Statuses, accepted(o, true, "Accepted", ""))
	out.Egress = append(out.Egress, e)
}

func prefix(s string, at manifest.Cursor, r *manifest.Report) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, e := netip.ParseAddr(s); e == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
	}
	if err != nil {
		r.Error(manifest.CodeBadValue, at, "write a network such as 10.0.0.0/8", "%q is not a network", s)
		return p, false
	}
	return p.Masked(), true
}

// without returns what is left of networks without another: halves of it, as often as they have to be cut.
func without(from []netip.Prefix, cut netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range from {
		switch {
		case !p.Overlaps(cut):
			out = append(out, p)
		case cut.Bits() <= p.Bits(): // all of it
		default:
			lo := netip.PrefixFrom(p.Addr(), p.Bits()+1)
			out = append(out, without([]netip.Prefix{lo, upper(p)}, cut)...)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

// upper is the upper half of a network.
func upper(p netip.Prefix) netip.Prefix {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes, as they came
	return netip.PrefixFrom(a, p.Bits()+1)
}
