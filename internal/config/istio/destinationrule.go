package istio

import (
	"slices"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// policyFields are those of one trafficPolicy, wherever it stands.
func policyFields(prefix string) manifest.Fields {
	fields := manifest.Join(
		manifest.Work("", "loadBalancer", "connectionPool", "outlierDetection", "tls"),
		manifest.Differ("without ISTIO_META_ENABLE_SELF_DISCOVERY: where the client's replicas are is always known", "loadBalancer.zoneAwareLbSetting"),
		manifest.Ignore("Istio does nothing with it either: consecutive5xxErrors and consecutiveGatewayErrors are what counts", "outlierDetection.consecutiveErrors"),
		manifest.Refuse("put the revocations into the Secret that credentialName names, as ca.crl", "tls.caCrl"),
	)
	for i := range fields {
		fields[i].Path = prefix + fields[i].Path
	}
	return fields
}

// filesDiffer says whose files paths of certificates are.
const filesDiffer = "a file beside the manifest, not in the proxy's container; a relative path starts at the manifest's folder"

var destinationRuleFields = manifest.Join(
	manifest.Work("", "host", "exportTo", "workloadSelector", "subsets[].name", "subsets[].labels"),
	policyFields("trafficPolicy."),
	manifest.Differ(filesDiffer, "trafficPolicy.tls.clientCertificate", "trafficPolicy.tls.privateKey", "trafficPolicy.tls.caCertificates"),
	manifest.Differ("in sidecars too, with a workloadSelector and without", "trafficPolicy.tls.credentialName"),
	manifest.Work("trafficPolicy.", "portLevelSettings[].port", "tunnel", "proxyProtocol", "retryBudget"),
	policyFields("trafficPolicy.portLevelSettings[]."),
	policyFields("subsets[].trafficPolicy."),
	manifest.Work("subsets[].trafficPolicy.", "portLevelSettings[].port", "tunnel", "proxyProtocol", "retryBudget"),
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
		Traffic:   r.trafficPolicy(at.Field("trafficPolicy"), in.GetTrafficPolicy()),
		ExportTo:  r.exportTo(at.Field("exportTo"), in.GetExportTo()),
		Workloads: r.selector(at.Field("workloadSelector").Field("matchLabels"), in.GetWorkloadSelector().GetMatchLabels()),
	}
	if len(d.Workloads) > 0 {
		if own := o.Name.Namespace; len(in.GetExportTo()) > 0 && !slices.Equal(d.ExportTo, []string{own}) {
			r.Error(manifest.CodeExclusive, at.Field("exportTo"), `write exportTo: ["."], or remove it`, "a rule with a workloadSelector is for its own namespace only")
		}
		d.ExportTo = []string{o.Name.Namespace}
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
	out.Tunnel = r.tunnel(at.Field("tunnel"), in.GetTunnel())
	if p := in.GetProxyProtocol(); p != nil {
		out.ProxyProtocol = 1
		if p.GetVersion() == networking.TrafficPolicy_ProxyProtocol_V2 {
			out.ProxyProtocol = 2
		}
	}
	out.Budget = r.budget(at.Field("retryBudget"), in.GetRetryBudget())
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
		out.Ports = append(out.Ports, model.PortPolicy{Port: number, Origin: here.Origin(), Traffic: r.policyBlocks(here, p)})
	}
	if len(out.Ports) > maxPorts {
		r.Error(manifest.CodeOutOfRange, at.Field("portLevelSettings"), "", "%d ports have settings: at most %d may", len(out.Ports), maxPorts)
	}
	return &out
}

// maxPorts is how many portLevelSettings the API server accepts.
const maxPorts = 4096

func (r *reader) policyBlocks(at manifest.Cursor, in policyBlocks) model.TrafficPolicy {
	var out model.TrafficPolicy
	if lb := in.GetLoadBalancer(); lb != nil {
		r.balancing(at.Field("loadBalancer"), lb, &out)
		if failsOver(out.Locality) && in.GetOutlierDetection() == nil {
			here := at.Field("loadBalancer").Field("localityLbSetting")
			if out.Locality.ZoneAware != nil {
				here = at.Field("loadBalancer").Field("zoneAwareLbSetting")
			}
			r.Info(manifest.CodeIgnoredField, here, "add outlierDetection: {} beside loadBalancer",
				"without outlierDetection no endpoint is ever unhealthy, so that traffic does not fail over, unless the policy above has it")
		}
	}
	if pool := in.GetConnectionPool(); pool != nil {
		r.pool(at.Field("connectionPool"), pool, &out)
	}
	if o := in.GetOutlierDetection(); o != nil {
		out.Outlier = r.outlier(at.Field("outlierDetection"), o)
	}
	if t := in.GetTls(); t != nil {
		r.clientTLS(at.Field("tls"), t, &out)
	}
	return out
}

// failsOver reports whether a locality setting asks for another place when one is unhealthy.
func failsOver(l *plan.Locality) bool { return l != nil && len(l.Failover)+len(l.Priority) > 0 }

// pool reads the connection pool block.
func (r *reader) pool(at manifest.Cursor, in *networking.ConnectionPoolSettings, out *model.TrafficPolicy) {
	tcp, http := at.Field("tcp"), at.Field("http")
	out.Limits = r.limits(at, in)
	out.ConnectTimeout = r.duration(tcp.Field("connectTimeout"), in.GetTcp().GetConnectTimeout(), false)
	out.TCPIdle = r.duration(tcp.Field("idleTimeout"), in.GetTcp().GetIdleTimeout(), true)
	if d := in.GetTcp().GetIdleTimeout(); d != nil && d.AsDuration() == 0 { // "If set to 0s, the timeout will be disabled."
		out.TCPIdle = noIdleTimeout
	}
	if k := in.GetTcp().GetTcpKeepalive(); k != nil {
		here := tcp.Field("tcpKeepalive")
		out.Keepalive = &plan.Keepalive{
			Probes:   k.GetProbes(),
			Time:     plan.Duration(r.duration(here.Field("time"), k.GetTime(), false)),
			Interval: plan.Duration(r.duration(here.Field("interval"), k.GetInterval(), false)),
		}
	}
	if p := in.GetHttp().GetH2UpgradePolicy(); p != networking.ConnectionPoolSettings_HTTPSettings_DEFAULT {
		upgrade := p == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE
		out.HTTP2 = &upgrade
	}
	out.ClientProtocol = in.GetHttp().GetUseClientProtocol()
	if out.ClientProtocol && out.HTTP2 != nil && *out.HTTP2 {
		r.Error(manifest.CodeExclusive, http.Field("useClientProtocol"), "keep one of them", "`useClientProtocol` and `h2UpgradePolicy: UPGRADE` exclude each other")
	}
	out.MaxStreams = r.count(http.Field("maxConcurrentStreams"), in.GetHttp().GetMaxConcurrentStreams())
	if k := in.GetHttp().GetHttp2KeepAlive(); k != nil {
		here := http.Field("http2KeepAlive")
		if k.GetInterval() == nil {
			r.Error(manifest.CodeRequired, here, "add interval: 30s", "the keep-alive has no interval")
		}
		out.Ping = &plan.Ping{
			Interval: plan.Duration(r.duration(here.Field("interval"), k.GetInterval(), false)),
			Timeout:  plan.Duration(r.duration(here.Field("timeout"), k.GetTimeout(), false)),
		}
		if k.GetTimeout() == nil {
			out.Ping.Timeout = plan.Duration(defaultPingTimeout)
		}
	}
}

// noIdleTimeout is as good as none: ten years.
const noIdleTimeout = 10 * 365 * 24 * time.Hour

// defaultPingTimeout is how long an answer to a ping may take when nobody says (gRPC's keep-alive, proposal A8).
const defaultPingTimeout = 20 * time.Second

// tunnel reads how to ask the endpoint for a way on.
func (r *reader) tunnel(at manifest.Cursor, in *networking.TrafficPolicy_TunnelSettings) *plan.Tunnel {
	if in == nil {
		return nil
	}
	out := &plan.Tunnel{Post: in.GetProtocol() == "POST", Port: r.port(at.Field("targetPort"), in.GetTargetPort())}
	if p := in.GetProtocol(); p != "" && p != "CONNECT" && p != "POST" {
		r.Error(manifest.CodeBadEnum, at.Field("protocol"), "use CONNECT or POST", "unknown protocol %q", p)
	}
	if in.GetTargetPort() == 0 {
		r.Error(manifest.CodeRequired, at, "add targetPort: 443", "the tunnel has no target port")
	}
	host, err := ident.CanonicalHost(in.GetTargetHost(), false)
	switch {
	case in.GetTargetHost() == "":
		r.Error(manifest.CodeRequired, at, "add targetHost: example.com", "the tunnel has no target host")
	case err != nil:
		r.Error(manifest.CodeBadHost, at.Field("targetHost"), "a host has letters, digits, '-' and '.', and no port", "%q is not a host", in.GetTargetHost())
	}
	out.Host = host
	return out
}

// The retry budget when a block does not say (Envoy RetryBudget).
const (
	defaultBudgetPercent = 20
	defaultBudgetMin     = 3
)

func (r *reader) budget(at manifest.Cursor, in *networking.TrafficPolicy_RetryBudget) *plan.ActiveRetries {
	if in == nil {
		return nil
	}
	out := &plan.ActiveRetries{
		Percent: defaultBudgetPercent, MinConcurrent: defaultBudgetMin,
		Interval: plan.Duration(r.duration(at.Field("budgetInterval"), in.GetBudgetInterval(), true)),
	}
	if p := in.GetPercent(); p != nil {
		out.Percent = r.percent(at.Field("percent"), p.GetValue())
	}
	if at.Field("minRetryConcurrency").Set() {
		out.MinConcurrent = in.GetMinRetryConcurrency()
	}
	return out
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

// defaultConsecutiveLocal holds when local errors are counted apart and nobody says how many (Envoy's
// consecutive_local_origin_failure).
const defaultConsecutiveLocal = 5

func (r *reader) outlier(at manifest.Cursor, in *networking.OutlierDetection) *plan.Outlier {
	out := &plan.Outlier{
		Consecutive5xx:          defaultConsecutive5xx,
		ConsecutiveGatewayError: in.GetConsecutiveGatewayErrors().GetValue(),
		Interval:                plan.Duration(r.duration(at.Field("interval"), in.GetInterval(), false)),
		BaseEjection:            plan.Duration(r.duration(at.Field("baseEjectionTime"), in.GetBaseEjectionTime(), false)),
		MaxEjectionPercent:      r.share(at.Field("maxEjectionPercent"), in.GetMaxEjectionPercent()),
		MinHealthPercent:        r.share(at.Field("minHealthPercent"), in.GetMinHealthPercent()),
	}
	if in.GetSplitExternalLocalOriginErrors() {
		out.SplitLocal, out.ConsecutiveLocal = true, defaultConsecutiveLocal
		if n := in.GetConsecutiveLocalOriginFailures(); n != nil {
			out.ConsecutiveLocal = n.GetValue()
		}
	} else if at.Field("consecutiveLocalOriginFailures").Set() {
		r.Warning(manifest.CodeIgnoredField, at.Field("consecutiveLocalOriginFailures"), "add splitExternalLocalOriginErrors: true", "`consecutiveLocalOriginFailures` has no effect: local errors are not counted apart")
	}
	for i, code := range in.GetOutlierDetectionHttpErrorCodes() {
		here := at.Field("outlierDetectionHttpErrorCodes").Index(i)
		if code < 100 || code > 599 {
			r.Error(manifest.CodeOutOfRange, here, "", "%d is not a status code: from 100 to 599", code)
		}
		out.Statuses = append(out.Statuses, plan.StatusRange{Min: int(code), Max: int(code)})
	}
	if n := in.GetConsecutive_5XxErrors(); n != nil {
		out.Consecutive5xx = n.GetValue()
	}
	if out.Consecutive5xx == 0 && out.ConsecutiveGatewayError == 0 && out.ConsecutiveLocal == 0 {
		r.Warning(manifest.CodeIgnoredField, at, "set consecutive5xxErrors or consecutiveGatewayErrors", "outlierDetection is off: nothing counts as a failure")
	}
	return out
}

// share reads a whole percentage.
func (r *reader) share(at manifest.Cursor, v int32) uint32 {
	return uint32(r.percent(at, float64(v)))
}
