package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// clusterName is the name that Istio gives the same group of endpoints; dashboards and access logs show it.
func clusterName(port int, subset, host string) string {
	return "outbound|" + strconv.Itoa(port) + "|" + subset + "|" + host
}

// resolve returns the name of the cluster of a target, and puts the cluster into the plan. port is where the request
// came in: it decides for a target without a port whose service has several. When the target does not resolve the cause
// is reported, ok is false, and the cluster has no endpoints.
func (c *compiler) resolve(t *model.Target, port int) (name string, ok bool) {
	s, host, number := c.meant(t, port)
	name = clusterName(number, t.Subset, host)
	ok = c.use(name, s, host, t, number)
	if c.memory != nil {
		c.noted = append(c.noted, resolved{target: *t, port: port, service: serviceOf(s), cluster: name, ok: ok})
	}
	return name, ok
}

// meant returns the service and port that a target means, and the service's host; s is nil when there is no such service.
func (c *compiler) meant(t *model.Target, in int) (s *model.ScopedService, host string, port int) {
	s, host, port = c.services[t.Host], t.Host, in
	if s != nil && s.Alias != "" {
		if to := c.dealias(s); to != nil {
			s, host = to, to.Host
		}
	}
	if t.Port != 0 {
		port = t.Port
	} else if s != nil {
		if only, ok := onlyPort(s.Service); ok {
			port = only
		}
	}
	return s, host, port
}

// use puts the cluster of a target into the plan.
func (c *compiler) use(name string, s *model.ScopedService, host string, t *model.Target, port int) bool {
	if _, ok := c.endpoints[name]; ok {
		return true
	}
	sp, subset, problem := c.find(s, t, port)
	if problem != nil {
		c.report(*problem)
		c.clusters[name] = plan.Cluster{Name: name, Host: host, Port: port, Subset: t.Subset, Protocol: ident.HTTP, Origin: t.Origin}
		return false
	}
	c.add(name, s, sp, t.Subset, subset, s.Members)
	return true
}

// add puts a cluster of a service port with some of its members into the plan.
func (c *compiler) add(name string, s *model.ScopedService, sp *model.ServicePort, subsetName string, subset *model.Subset, members []*model.Member) {
	cl := c.cluster(name, s, sp, subsetName, subset)
	e := plan.Endpoints{Cluster: name}
	switch {
	case cl.Discovery == plan.AsRequested:
	case s.Alias != "":
		e.Endpoints = []plan.Endpoint{{Address: hostPort(s.Alias, targetOf(sp))}}
	default:
		e.Endpoints = c.endpointsOf(name, members, sp.Port, subset, sharesConnections(s, sp, subset), cl.Locality)
	}
	c.clusters[name], c.endpoints[name] = cl, e
}

func targetOf(sp *model.ServicePort) int {
	if sp.Target != 0 {
		return sp.Target
	}
	return sp.Port
}

// dealias returns the service that an ExternalName stands for; nil when the mesh does not know it, or it stands for itself
// in the end.
func (c *compiler) dealias(s *model.ScopedService) *model.ScopedService {
	for range maxAliases {
		to := c.services[s.Alias]
		if to == nil || to.Alias == "" {
			return to
		}
		s = to
	}
	return nil
}

// maxAliases is how many names in a row may stand for the next (DNS servers stop at about as many CNAMEs).
const maxAliases = 8

// find returns the port and subset (nil: the whole service) that a target means, or why there are none.
func (c *compiler) find(s *model.ScopedService, t *model.Target, port int) (*model.ServicePort, *model.Subset, *model.Diagnostic) {
	problem := func(code, hint, format string, args ...any) *model.Diagnostic {
		return &model.Diagnostic{
			Code: code, Severity: model.Warning, Origin: t.Origin, Message: fmt.Sprintf(format, args...), Hint: hint,
		}
	}
	client := c.scope.Node.Name.Namespace
	if s == nil {
		return nil, nil, problem(model.CodeNoHost, "requests that are sent there are answered with 503; create the Service, or correct the host",
			"destination host %s does not exist, or is not visible from namespace %s", t.Host, client)
	}
	sp, ok := servicePort(s.Service, port)
	switch {
	case !ok && t.Port == 0:
		return nil, nil, problem(model.CodeAmbiguousPort, "add port.number to the destination",
			"the destination names no port, service %s has several, and none of them is %d", t.Host, port)
	case !ok:
		return nil, nil, problem(model.CodeNoPort, "requests that are sent there are answered with 503; name a port of the Service, not of its workloads",
			"service %s has no port %d", t.Host, port)
	}
	subset, ok := findSubset(s.Policy, t.Subset)
	if !ok {
		force := "no DestinationRule is in force"
		if s.Policy != nil {
			force = "the DestinationRule in force is " + s.Policy.Name.String()
		}
		return nil, nil, problem(model.CodeNoSubset, "define it under subsets in that DestinationRule: those of other namespaces do not merge",
			"subset %s of %s is not defined for clients in namespace %s: %s", t.Subset, t.Host, client, force)
	}
	return sp, subset, nil
}

// onlyPort returns the port of a service that has one.
func onlyPort(s *model.Service) (int, bool) {
	only, n := 0, 0
	for i := range s.Ports {
		if s.Ports[i].Protocol != ident.UDP {
			only = s.Ports[i].Port
			n++
		}
	}
	return only, n == 1
}

// findSubset returns the subset called name; nil and true for the whole service.
func findSubset(p *model.DestinationPolicy, name string) (*model.Subset, bool) {
	if name == "" {
		return nil, true
	}
	if p != nil {
		for i := range p.Subsets {
			if p.Subsets[i].Name == name {
				return &p.Subsets[i], true
			}
		}
	}
	return nil, false
}

// session returns a session with the mesh's key.
func (c *compiler) session(s *plan.Session) *plan.Session {
	if s == nil || len(c.scope.SessionKey) == 0 {
		return s
	}
	keyed := *s
	keyed.Key = c.scope.SessionKey
	return &keyed
}

// cluster returns how to use the endpoints of a service port. What the DestinationRule in force sets block by block wins
// over what the Service says of itself.
func (c *compiler) cluster(name string, s *model.ScopedService, sp *model.ServicePort, subsetName string, subset *model.Subset) plan.Cluster {
	out := plan.Cluster{
		Name:      name,
		Host:      s.Host,
		Port:      sp.Port,
		Subset:    subsetName,
		Protocol:  upstreamProtocol(sp.Protocol),
		Service:   serviceLabels(s.Service),
		Origin:    s.Origin,
		Discovery: discovery(s.Service),
		Balancer:  s.Balancer,
		Hash:      s.Hash,
		Session:   c.session(s.Session),
		Check:     s.Check,
		Originate: sp.Originate,
	}
	if !profiled(s) { // Linkerd: a ServiceProfile in force switches failure accrual off
		out.Outlier = s.Outlier
	}
	if s.External {
		out.TLS = plan.TLSOff // MESH_EXTERNAL: nobody there knows the mesh
	}
	var t model.TrafficPolicy
	if s.Policy != nil {
		out.Origin = s.Policy.Origin
		if subset != nil && !subset.Origin.IsZero() {
			out.Origin = subset.Origin
		}
		t = trafficFor(s.Policy.Traffic, subset, sp.Port)
		c.apply(&out, &t)
		if s.External && t.HTTP2 != nil && *t.HTTP2 && out.Protocol == ident.HTTP {
			out.Protocol = ident.HTTP2 // h2UpgradePolicy: UPGRADE; between sidecars endpointsOf says it
		}
	}
	switch {
	case out.Hash == nil:
	case out.Balancer != plan.RingHash && out.Balancer != plan.Maglev:
		out.Balancer = plan.RingHash
	}
	if out.Protocol != ident.TCP {
		out.Tunnel = nil // of opaque connections only
	}
	out.Originate = c.originate(out.Originate, s, out.Origin)
	out.Locality = c.locality(s, &t, &out)
	if out.TLS != plan.TLSOff && out.Discovery != plan.AsRequested && s.Alias == "" {
		// Istio's server name for mesh traffic: the server's sidecar learns which cluster the client meant.
		out.SNI = "outbound_." + strconv.Itoa(sp.Port) + "_." + subsetName + "_." + s.Host
		if t.SNI != "" {
			out.SNI = t.SNI
		}
	}
	return out
}

// apply puts the blocks of a policy in force.
func (c *compiler) apply(out *plan.Cluster, t *model.TrafficPolicy) {
	if balances(t) {
		out.Balancer, out.Hash, out.Warmup = "", t.Hash, t.Warmup
		if t.Balancer != nil {
			out.Balancer = *t.Balancer
		}
		if t.PassThrough {
			out.Discovery = plan.AsRequested
		}
	}
	pool(out, t)
	if t.Outlier != nil {
		out.Outlier = t.Outlier
	}
	if t.TLS != nil || t.Originate != nil {
		out.Originate = t.Originate
		if t.TLS != nil {
			out.TLS = *t.TLS
		}
	}
	out.ProxyProtocol, out.Tunnel, out.Budget = t.ProxyProtocol, t.Tunnel, t.Budget
}

// pool puts the connection pool of a policy in force.
func pool(out *plan.Cluster, t *model.TrafficPolicy) {
	if t.Limits != nil {
		out.Limits = *t.Limits
	}
	out.ConnectTimeout = plan.Duration(t.ConnectTimeout)
	out.TCPIdle = plan.Duration(t.TCPIdle)
	if out.Protocol != ident.TCP { // Istio's applyConnectionPool: tcp.idleTimeout holds for HTTP where http.idleTimeout is not written
		out.Limits.IdleTimeout = cmp.Or(out.Limits.IdleTimeout, out.TCPIdle)
	}
	if out.Protocol.IsHTTP() {
		out.TCPIdle = 0 // of opaque connections only
	}
	out.Keepalive, out.Ping, out.MaxStreams, out.ClientProtocol = t.Keepalive, t.Ping, t.MaxStreams, t.ClientProtocol
}

// profiled reports whether a ServiceProfile says something about requests to s.
func profiled(s *model.ScopedService) bool {
	return s.Profile != nil && len(s.Profile.Routes)+len(s.Profile.Overrides) > 0
}

func discovery(s *model.Service) plan.Discovery {
	switch s.Resolution {
	case model.ByDNS:
		return plan.DNS
	case model.ByDNSFirst:
		return plan.DNSFirst
	case model.ByRequest:
		return plan.AsRequested
	}
	if s.Alias != "" {
		return plan.DNS
	}
	return plan.Given
}

// originate completes TLS that the proxy begins: names of secrets, and of whom the server must be.
func (c *compiler) originate(t *plan.ClientTLS, s *model.ScopedService, origin ident.Origin) *plan.ClientTLS {
	if t == nil {
		return nil
	}
	out := *t
	if out.Secret == "" && c.scope.Gateway != nil {
		out.Secret = c.scope.Gateway.ClientCertificate
	}
	out.Secret = c.secret(out.Secret, origin)
	out.Authorities = c.secret(out.Authorities, origin)
	if len(out.SubjectAltNames) == 0 {
		out.SubjectAltNames = s.SubjectAltNames
	}
	return &out
}

// locality returns how near endpoints are preferred: as the DestinationRule says, else the Service, else, where endpoints
// may be put aside, by region, zone and subzone. Without a way to tell that endpoints are ill there is no failover, but
// shares are divided. Source: Istio, LocalityLoadBalancerSetting and Service.spec.trafficDistribution.
func (c *compiler) locality(s *model.ScopedService, t *model.TrafficPolicy, cl *plan.Cluster) *plan.Locality {
	ills := cl.Outlier != nil || cl.Check != nil
	switch {
	case t.LocalityOff || cl.Discovery == plan.AsRequested:
		return nil
	case t.Locality != nil:
		if len(t.Locality.Distribute) == 0 && t.Locality.ZoneAware == nil && !ills {
			return nil
		}
		return t.Locality
	case s.Near != nil:
		return s.Near
	case t.Outlier != nil && c.scope.Node.Locality != "": // an annotation of Linkerd does not ask for it
		return &plan.Locality{}
	}
	return nil
}

func upstreamProtocol(p ident.Protocol) ident.Protocol {
	if p == ident.TLS {
		return ident.TCP // the application's own TLS is opaque to us
	}
	return p
}

// trafficFor returns the blocks in force for a port of a service or subset. A port's policy replaces the destination's as
// a whole (onPort): blocks missing in it go back to defaults. A subset's blocks replace the destination's one by one, and its
// port's policy replaces the result as a whole. Source: Istio, TrafficPolicy.portLevelSettings and Subset.trafficPolicy.
func trafficFor(base *model.TrafficPolicy, subset *model.Subset, port int) model.TrafficPolicy {
	var out model.TrafficPolicy
	if base != nil {
		out = *base
		if p := portPolicy(base, port); p != nil {
			out = onPort(p, base)
		}
	}
	if subset == nil || subset.Traffic == nil {
		return out
	}
	t := subset.Traffic
	if balances(t) {
		out.Balancer, out.Hash, out.Locality, out.LocalityOff, out.Warmup, out.PassThrough = t.Balancer, t.Hash, t.Locality, t.LocalityOff, t.Warmup, t.PassThrough
	}
	if pools(t) {
		out.Limits, out.ConnectTimeout, out.HTTP2, out.TCPIdle = t.Limits, t.ConnectTimeout, t.HTTP2, t.TCPIdle
		out.Keepalive, out.Ping, out.MaxStreams, out.ClientProtocol = t.Keepalive, t.Ping, t.MaxStreams, t.ClientProtocol
	}
	if t.Outlier != nil {
		out.Outlier = t.Outlier
	}
	if t.TLS != nil || t.Originate != nil {
		out.TLS, out.Originate, out.SNI = t.TLS, t.Originate, t.SNI
	}
	if t.ProxyProtocol != 0 {
		out.ProxyProtocol = t.ProxyProtocol
	}
	if t.Tunnel != nil {
		out.Tunnel = t.Tunnel
	}
	if t.Budget != nil {
		out.Budget = t.Budget
	}
	if p := portPolicy(t, port); p != nil {
		return onPort(p, &out)
	}
	return out
}

// onPort returns a port's policy, with those blocks of the whole that a port cannot have of its own. Source: Istio,
// TrafficPolicy.PortTrafficPolicy has no tunnel, proxyProtocol and retryBudget, and its mergeTrafficPolicy leaves them.
func onPort(p, whole *model.TrafficPolicy) model.TrafficPolicy {
	out := *p
	out.Tunnel, out.ProxyProtocol, out.Budget = whole.Tunnel, whole.ProxyProtocol, whole.Budget
	return out
}

// balances reports whether the loadBalancer block is set.
func balances(t *model.TrafficPolicy) bool {
	return t.Balancer != nil || t.Hash != nil || t.Locality != nil || t.LocalityOff || t.Warmup != nil || t.PassThrough
}

// pools reports whether the connectionPool block is set.
func pools(t *model.TrafficPolicy) bool {
	return t.Limits != nil || t.ConnectTimeout != 0 || t.HTTP2 != nil || t.Keepalive != nil || t.Ping != nil || t.MaxStreams != 0 ||
		t.ClientProtocol || t.TCPIdle != 0
}

func portPolicy(t *model.TrafficPolicy, port int) *model.TrafficPolicy {
	for i := range t.Ports {
		if t.Ports[i].Port == port {
			return &t.Ports[i].Traffic
		}
	}
	return nil
}

// sharesConnections reports whether requests of an HTTP port may share HTTP/2 connections between sidecars: less than half of
// the cost, as Linkerd does it. Limits that count HTTP/1.1 connections, or the requests that wait for one, mean what they
// say only without it; h2UpgradePolicy decides when it is written (Istio ConnectionPoolSettings.HTTPSettings).
func sharesConnections(s *model.ScopedService, sp *model.ServicePort, subset *model.Subset) bool {
	if sp.Protocol != ident.HTTP {
		return false
	}
	if s.Policy == nil {
		return true
	}
	t := trafficFor(s.Policy.Traffic, subset, sp.Port)
	if t.HTTP2 != nil {
		return *t.HTTP2
	}
	if t.ClientProtocol {
		return false // each request as the client sent it
	}
	return t.Limits == nil || t.Limits.MaxConnections == 0 && t.Limits.MaxPendingRequests == 0 && t.Limits.MaxRequestsPerConnection == 0
}

// endpoints returns the members of a subset (nil: all) for a service port, sorted by address. domain is the mesh's trust domain.
func endpoints(members []*model.Member, port int, subset *model.Subset, share bool, locality *plan.Locality, domain string) []plan.Endpoint {
	var keys []string
	if locality != nil {
		keys = priorityKeys(locality)
	}
	var out []plan.Endpoint
	for _, m := range members {
		if subset != nil && !model.HasLabels(m.Labels, subset.Labels) {
			continue
		}
		for _, p := range m.Ports {
			if p.Port == port {
				out = append(out, plan.Endpoint{
					Address: p.Address, Identity: localIdentity(m.Identity, domain), Workload: m.Describe, Plaintext: p.Plaintext,
					HTTP2:  share && p.Protocol == ident.HTTP && !p.Plaintext && !m.Identity.IsZero(),
					Weight: m.Weight, Locality: m.Locality, Labels: labelSet(m.Labels, m.Locality, keys),
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b plan.Endpoint) int { return cmp.Compare(a.Address, b.Address) })
	return out
}

// priorityKeys returns the labels that a locality reads, sorted.
func priorityKeys(l *plan.Locality) []string {
	var out []string
	for _, p := range l.Priority {
		key, _, _ := strings.Cut(p, "=")
		out = append(out, key)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// labelSet returns those labels of something at a locality that keys, which are sorted, name.
func labelSet(labels map[string]string, locality string, keys []string) plan.LabelSet {
	var b strings.Builder
	for _, k := range keys {
		v, ok := labels[k]
		if !ok {
			v, _ = plan.PlaceLabel(k, locality)
			ok = v != ""
		}
		if ok {
			if b.Len() > 0 {
				b.WriteByte(',')
			}
			b.WriteString(k + "=" + v)
		}
	}
	return plan.LabelSet(b.String())
}

// Endpoints returns the endpoints of every cluster of a service that p, the plan of a client, has: for when members changed
// and nothing else did. False when more of the plan follows from its members: compile it anew.
func Endpoints(s *model.ScopedService, p *plan.Plan) ([]plan.Endpoints, bool) {
	if slices.ContainsFunc(s.Members, func(m *model.Member) bool { return m.Host != "" }) || s.Headless {
		return nil, false // each member has a name of its own
	}
	subsets := []*model.Subset{nil}
	if s.Policy != nil {
		for i := range s.Policy.Subsets {
			subsets = append(subsets, &s.Policy.Subsets[i])
		}
	}
	var out []plan.Endpoints
	for i := range s.Ports {
		if s.Ports[i].Protocol == ident.UDP {
			continue
		}
		for _, subset := range subsets {
			name := ""
			if subset != nil {
				name = subset.Name
			}
			name = clusterName(s.Ports[i].Port, name, s.Host)
			at, ok := slices.BinarySearchFunc(p.Clusters, name, func(c plan.Cluster, n string) int { return cmp.Compare(c.Name, n) })
			if !ok || p.Clusters[at].Discovery == plan.AsRequested {
				continue
			}
			share := sharesConnections(s, &s.Ports[i], subset)
			out = append(out, plan.Endpoints{Cluster: name, Endpoints: endpoints(s.Members, s.Ports[i].Port, subset, share, p.Clusters[at].Locality, p.Node.Identity.TrustDomain)})
		}
	}
	return out, true
}
