package istio

import (
	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// policyFields are those of one trafficPolicy, wherever it stands.
func policyFields(prefix string) manifest.Fields {
	fields := manifest.Fields{
		{Path: "loadBalancer.simple", Support: manifest.Works},
		{Path: "loadBalancer.simple", Value: "PASSTHROUGH", Support: manifest.Refused, Note: "remove the DestinationRule: hosts outside the mesh are reached as written"},
		{Path: "loadBalancer.consistentHash", Support: manifest.Refused, Note: "use simple: LEAST_REQUEST"},
		{Path: "loadBalancer.localityLbSetting.enabled", Support: manifest.Refused, Note: "remove it: endpoints of every locality are used"},
		{Path: "loadBalancer.localityLbSetting.distribute", Support: manifest.Refused, Note: "remove it: endpoints of every locality are used"},
		{Path: "loadBalancer.localityLbSetting.failover", Support: manifest.Refused, Note: "remove it: endpoints of every locality are used"},
		{Path: "loadBalancer.localityLbSetting.failoverPriority", Support: manifest.Refused, Note: "remove it: endpoints of every locality are used"},
		{Path: "loadBalancer.localityLbSetting.enabled", Value: "false", Support: manifest.Works},
		{Path: "connectionPool.tcp.maxConnections", Support: manifest.Works},
		{Path: "connectionPool.tcp.connectTimeout", Support: manifest.Works},
		{Path: "connectionPool.tcp.maxConnectionDuration", Support: manifest.Works},
		{Path: "connectionPool.http.http1MaxPendingRequests", Support: manifest.Works},
		{Path: "connectionPool.http.http2MaxRequests", Support: manifest.Works},
		{Path: "connectionPool.http.maxRequestsPerConnection", Support: manifest.Works},
		{Path: "connectionPool.http.maxRetries", Support: manifest.Works},
		{Path: "connectionPool.http.idleTimeout", Support: manifest.Works},
		{Path: "connectionPool.http.h2UpgradePolicy", Support: manifest.Works},
		{Path: "connectionPool.http.useClientProtocol", Support: manifest.Refused, Note: "leave the port's protocol undeclared: then the client's is used"},
		{Path: "connectionPool.http.useClientProtocol", Value: "false", Support: manifest.Works},
		{Path: "outlierDetection.consecutive5xxErrors", Support: manifest.Works},
		{Path: "outlierDetection.consecutiveGatewayErrors", Support: manifest.Works},
		{Path: "outlierDetection.interval", Support: manifest.Works},
		{Path: "outlierDetection.baseEjectionTime", Support: manifest.Works},
		{Path: "outlierDetection.maxEjectionPercent", Support: manifest.Works},
		{Path: "outlierDetection.minHealthPercent", Support: manifest.Works},
		{Path: "outlierDetection.consecutiveErrors", Support: manifest.Refused, Note: "use consecutive5xxErrors, or consecutiveGatewayErrors"},
		{Path: "outlierDetection.splitExternalLocalOriginErrors", Value: "false", Support: manifest.Works},
		{Path: "tls.mode", Support: manifest.Works},
		{Path: "tls.mode", Value: "SIMPLE", Support: manifest.Refused, Note: "let the program speak TLS itself; between workloads of the mesh ISTIO_MUTUAL is automatic"},
		{Path: "tls.mode", Value: "MUTUAL", Support: manifest.Refused, Note: "let the program speak TLS itself; between workloads of the mesh ISTIO_MUTUAL is automatic"},
	}
	for i := range fields {
		fields[i].Path = prefix + fields[i].Path
	}
	return fields
}

var destinationRuleFields = manifest.Join(
	manifest.Work("", "host", "exportTo", "subsets[].name", "subsets[].labels"),
	policyFields("trafficPolicy."),
	manifest.Work("", "trafficPolicy.portLevelSettings[].port"),
	policyFields("trafficPolicy.portLevelSettings[]."),
	policyFields("subsets[].trafficPolicy."),
	manifest.Work("", "subsets[].trafficPolicy.portLevelSettings[].port"),
	policyFields("subsets[].trafficPolicy.portLevelSettings[]."),
)

func destinationRule(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.DestinationRule{}
	if !r.decode(spec, in) {
		return
	}
	d := model.DestinationPolicy{
		Meta: o.Meta(), Host: r.host(at.Field("host"), in.GetHost(), true),
		Traffic:  r.trafficPolicy(at.Field("trafficPolicy"), in.GetTrafficPolicy()),
		ExportTo: r.exportTo(at.Field("exportTo"), in.GetExportTo()),
	}
	lines := map[string]int{}
	for i, s := range in.GetSubsets() {
		here := at.Field("subsets").Index(i)
		switch line, twice := lines[s.GetName()]; {
		case s.GetName() == "":
			r.Error(manifest.CodeSubset, here, "add name: …", "the subset has no name")
		case twice:
			r.Error(manifest.CodeSubset, here.Field("name"), "give it another name", "subset %q stands twice, first on line %d", s.GetName(), line)
		case !manifest.IsDNSLabel(s.GetName()):
			r.Error(manifest.CodeSubset, here.Field("name"), "lower-case letters, digits and '-'", "%q is not a valid name of a subset", s.GetName())
		}
		lines[s.GetName()] = here.Line()
		if len(s.GetLabels()) == 0 && d.Host != "" {
			r.Warning(manifest.CodeSubset, here, "add labels: {version: …}", "subset %q has no labels: it is every workload of %s", s.GetName(), d.Host)
		}
		d.Subsets = append(d.Subsets, model.Subset{
			Name: s.GetName(), Labels: r.selector(here.Field("labels"), s.GetLabels()), Origin: here.Origin(),
			Traffic: r.trafficPolicy(here.Field("trafficPolicy"), s.GetTrafficPolicy()),
		})
	}
	out.Traffic = append(out.Traffic, d)
}

// policyBlocks is what a trafficPolicy and the policy of a port have in common.
type policyBlocks interface {
	GetLoadBalancer() *networking.LoadBalancerSettings
	GetConnectionPool() *networking.ConnectionPoolSettings
	GetOutlierDetection() *networking.OutlierDetection
	GetTls() *networking.ClientTLSSettings
}

func (r *reader) trafficPolicy(at manifest.Cursor, in *networking.TrafficPolicy) *model.TrafficPolicy {
	if in == nil {
		return nil
	}
	out := r.policyBlocks(at, in)
	lines := map[int]int{}
	for i, p := range in.GetPortLevelSettings() {
		here := at.Field("portLevelSettings").Index(i)
		number := r.port(here.Field("port").Field("number"), p.GetPort().GetNumber())
		line, twice := lines[number]
		switch {
		case number == 0:
			r.Error(manifest.CodeRequired, here, "add port: {number: …}", "the settings name no port")
		case twice:
			r.Error(manifest.CodePorts, here.Field("port"), "keep one of them", "port %d stands twice, first on line %d", number, line)
		}
		lines[number] = here.Line()
		out.Ports = append(out.Ports, model.PortPolicy{Port: number, Traffic: r.policyBlocks(here, p)})
	}
	return &out
}

func (r *reader) policyBlocks(at manifest.Cursor, in policyBlocks) model.TrafficPolicy {
	var out model.TrafficPolicy
	if lb := in.GetLoadBalancer(); lb != nil {
		b := balancer(lb.GetSimple())
		out.Balancer = &b
	}
	if pool := in.GetConnectionPool(); pool != nil {
		out.Limits = r.limits(at.Field("connectionPool"), pool)
		out.ConnectTimeout = r.duration(at.Field("connectionPool").Field("tcp").Field("connectTimeout"), pool.GetTcp().GetConnectTimeout(), false)
		if p := pool.GetHttp().GetH2UpgradePolicy(); p != networking.ConnectionPoolSettings_HTTPSettings_DEFAULT {
			upgrade := p == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE
			out.HTTP2 = &upgrade
		}
	}
	if o := in.GetOutlierDetection(); o != nil {
		out.Outlier = r.outlier(at.Field("outlierDetection"), o)
	}
	if t := in.GetTls(); t != nil {
		mode := plan.TLSOff // DISABLE is also what a tls block without a mode means
		if t.GetMode() == networking.ClientTLSSettings_ISTIO_MUTUAL {
			mode = plan.TLSMutual
		}
		if !at.Field("tls").Field("mode").Set() {
			r.Warning(manifest.CodeRequired, at.Field("tls"), "write mode: DISABLE, or remove tls", "a tls block without a mode switches mesh TLS off")
		}
		out.TLS = &mode
	}
	return out
}

func balancer(in networking.LoadBalancerSettings_SimpleLB) plan.Balancer {
	switch in {
	case networking.LoadBalancerSettings_RANDOM:
		return plan.Random
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		return plan.RoundRobin
	}
	return plan.LeastRequest // also UNSPECIFIED, and LEAST_CONN, its old name
}

func (r *reader) limits(at manifest.Cursor, in *networking.ConnectionPoolSettings) *plan.Limits {
	tcp, http := at.Field("tcp"), at.Field("http")
	return &plan.Limits{
		MaxConnections:           r.count(tcp.Field("maxConnections"), in.GetTcp().GetMaxConnections()),
		MaxConnectionDuration:    plan.Duration(r.duration(tcp.Field("maxConnectionDuration"), in.GetTcp().GetMaxConnectionDuration(), false)),
		MaxPendingRequests:       r.count(http.Field("http1MaxPendingRequests"), in.GetHttp().GetHttp1MaxPendingRequests()),
		MaxRequests:              r.count(http.Field("http2MaxRequests"), in.GetHttp().GetHttp2MaxRequests()),
		MaxRetries:               r.count(http.Field("maxRetries"), in.GetHttp().GetMaxRetries()),
		MaxRequestsPerConnection: r.count(http.Field("maxRequestsPerConnection"), in.GetHttp().GetMaxRequestsPerConnection()),
		IdleTimeout:              plan.Duration(r.duration(http.Field("idleTimeout"), in.GetHttp().GetIdleTimeout(), false)),
	}
}

// defaultConsecutive5xx holds when outlierDetection is there and does not say (Envoy's consecutive_5xx).
const defaultConsecutive5xx = 5

func (r *reader) outlier(at manifest.Cursor, in *networking.OutlierDetection) *plan.Outlier {
	out := &plan.Outlier{
		Consecutive5xx:          defaultConsecutive5xx,
		ConsecutiveGatewayError: in.GetConsecutiveGatewayErrors().GetValue(),
		Interval:                plan.Duration(r.duration(at.Field("interval"), in.GetInterval(), false)),
		BaseEjection:            plan.Duration(r.duration(at.Field("baseEjectionTime"), in.GetBaseEjectionTime(), false)),
		MaxEjectionPercent:      r.share(at.Field("maxEjectionPercent"), in.GetMaxEjectionPercent()),
		MinHealthPercent:        r.share(at.Field("minHealthPercent"), in.GetMinHealthPercent()),
	}
	if n := in.GetConsecutive_5XxErrors(); n != nil {
		out.Consecutive5xx = n.GetValue()
	}
	if out.Consecutive5xx == 0 && out.ConsecutiveGatewayError == 0 {
		r.Warning(manifest.CodeIgnoredField, at, "set consecutive5xxErrors or consecutiveGatewayErrors", "outlierDetection is off: nothing counts as a failure")
	}
	return out
}

// share reads a whole percentage.
func (r *reader) share(at manifest.Cursor, v int32) uint32 {
	return uint32(r.percent(at, float64(v)))
}
