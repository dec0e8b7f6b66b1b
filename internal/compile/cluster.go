package compile

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// clusterName is the name that Istio gives the same group of endpoints; dashboards and access logs show it.
func clusterName(port int, subset, host string) string {
	return fmt.Sprintf("outbound|%d|%s|%s", port, subset, host)
}

// resolve returns the name of the cluster of a target, and puts the cluster into the plan. port is where the request
// came in: it decides for a target without a port whose service has several. When the target does not resolve the cause
// is reported, ok is false, and the cluster has no endpoints.
func (c *compiler) resolve(t *model.Target, port int) (name string, ok bool) {
	s := c.services[t.Host]
	if t.Port != 0 {
		port = t.Port
	} else if s != nil {
		if only, ok := onlyPort(s.Service); ok {
			port = only
		}
	}
	name = clusterName(port, t.Subset, t.Host)
	if _, ok := c.endpoints[name]; ok {
		return name, true
	}
	sp, subset, problem := c.find(s, t, port)
	if problem != nil {
		c.report(*problem)
		c.clusters[name] = plan.Cluster{Name: name, Host: t.Host, Port: port, Subset: t.Subset, Protocol: ident.HTTP, Origin: t.Origin}
		return name, false
	}
	c.clusters[name] = cluster(name, s, sp, t.Subset, subset)
	c.endpoints[name] = plan.Endpoints{Cluster: name, Endpoints: endpoints(s.Members, port, subset, sharesConnections(s, sp, subset))}
	return name, true
}

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

func cluster(name string, s *model.ScopedService, sp *model.ServicePort, subsetName string, subset *model.Subset) plan.Cluster {
	out := plan.Cluster{
		Name:     name,
		Host:     s.Host,
		Port:     sp.Port,
		Subset:   subsetName,
		Protocol: upstreamProtocol(sp.Protocol),
		Service:  serviceLabels(s.Service),
		Origin:   s.Origin,
	}
	if s.Policy != nil {
		out.Origin = s.Policy.Origin
		if subset != nil && !subset.Origin.IsZero() {
			out.Origin = subset.Origin
		}
		t := trafficFor(s.Policy.Traffic, subset, sp.Port)
		if t.Balancer != nil {
			out.Balancer = *t.Balancer
		}
		if t.Limits != nil {
			out.Limits = *t.Limits
		}
		if t.TLS != nil {
			out.TLS = *t.TLS
		}
		out.ConnectTimeout = plan.Duration(t.ConnectTimeout)
		out.Outlier = t.Outlier
	}
	if out.TLS != plan.TLSOff {
		// Istio's server name for mesh traffic: the server's sidecar learns which cluster the client meant.
		out.SNI = fmt.Sprintf("outbound_.%d_.%s_.%s", sp.Port, subsetName, s.Host)
	}
	return out
}

func upstreamProtocol(p ident.Protocol) ident.Protocol {
	if p == ident.TLS {
		return ident.TCP // the application's own TLS is opaque to us
	}
	return p
}

// trafficFor returns the blocks in force for a port of a service or subset. A port's policy replaces the destination's as
// a whole: blocks missing in it go back to defaults. A subset's blocks replace the destination's one by one, and its
// port's policy replaces the result as a whole. Source: Istio, TrafficPolicy.portLevelSettings and Subset.trafficPolicy.
func trafficFor(base *model.TrafficPolicy, subset *model.Subset, port int) model.TrafficPolicy {
	var out model.TrafficPolicy
	if base != nil {
		out = *base
		if p := portPolicy(base, port); p != nil {
			out = *p
		}
	}
	if subset == nil || subset.Traffic == nil {
		return out
	}
	t := subset.Traffic
	if p := portPolicy(t, port); p != nil {
		return *p
	}
	if t.Balancer != nil {
		out.Balancer = t.Balancer
	}
	if t.Limits != nil || t.ConnectTimeout != 0 || t.HTTP2 != nil { // one block: connectionPool
		out.Limits, out.ConnectTimeout, out.HTTP2 = t.Limits, t.ConnectTimeout, t.HTTP2
	}
	if t.Outlier != nil {
		out.Outlier = t.Outlier
	}
	if t.TLS != nil {
		out.TLS = t.TLS
	}
	return out
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
	return t.Limits == nil || t.Limits.MaxConnections == 0 && t.Limits.MaxPendingRequests == 0 && t.Limits.MaxRequestsPerConnection == 0
}

// endpoints returns the members of a subset (nil: all) for a service port, sorted by address.
func endpoints(members []*model.Member, port int, subset *model.Subset, share bool) []plan.Endpoint {
	var out []plan.Endpoint
	for _, m := range members {
		if subset != nil && !model.HasLabels(m.Labels, subset.Labels) {
			continue
		}
		for _, p := range m.Ports {
			if p.Port == port {
				out = append(out, plan.Endpoint{
					Address: p.Address, Identity: m.Identity, Workload: m.Describe, Plaintext: p.Plaintext,
					HTTP2: share && p.Protocol == ident.HTTP && !p.Plaintext,
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b plan.Endpoint) int { return cmp.Compare(a.Address, b.Address) })
	return out
}
