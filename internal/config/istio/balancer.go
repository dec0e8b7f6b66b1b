package istio

import (
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// balancing reads the load balancer block.
func (r *reader) balancing(at manifest.Cursor, in *networking.LoadBalancerSettings, out *model.TrafficPolicy) {
	b := balancer(in.GetSimple())
	out.PassThrough = in.GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH
	if h := in.GetConsistentHash(); h != nil {
		b = plan.RingHash // "Defaults to RingHash if not specified"
		if h.GetMaglev() != nil {
			b = plan.Maglev
		}
		out.Hash = r.hash(at.Field("consistentHash"), h)
	}
	out.Balancer = &b
	if l := in.GetLocalityLbSetting(); l != nil {
		here := at.Field("localityLbSetting")
		out.Locality = r.locality(here, l)
		for i, p := range l.GetFailoverPriority() {
			if _, is := plan.PlaceLabel(p, ""); is && len(l.GetFailover()) > 0 {
				r.Error(manifest.CodeLocality, here.Field("failoverPriority").Index(i), "keep one of them", "`failover` and %s exclude each other: regions and zones are compared behind the labels", p)
			}
		}
		if e := l.GetEnabled(); e != nil && !e.GetValue() {
			out.LocalityOff, out.Locality = true, nil
		}
	}
	if z := in.GetZoneAwareLbSetting(); z != nil {
		here := at.Field("zoneAwareLbSetting")
		if in.GetLocalityLbSetting() != nil {
			r.Error(manifest.CodeExclusive, here, "keep one of them", "`zoneAwareLbSetting` and `localityLbSetting` exclude each other")
		}
		out.Locality = r.zoneAware(here, z)
		if e := z.GetEnabled(); e != nil && !e.GetValue() {
			out.LocalityOff, out.Locality = true, nil
		}
	}
	out.Warmup = r.warmup(at, in, b, out.PassThrough)
}

// zoneAware reads how requests stay in their zone. Regions are always apart.
func (r *reader) zoneAware(at manifest.Cursor, in *networking.ZoneAwareLoadBalancerSetting) *plan.Locality {
	of := &networking.LocalityLoadBalancerSetting{FailoverPriority: in.GetFailoverPriority()}
	for _, f := range in.GetFailover() {
		of.Failover = append(of.Failover, &networking.LocalityLoadBalancerSetting_Failover{From: f.GetFrom(), To: f.GetTo()})
	}
	out := r.locality(at, of)
	for i, p := range in.GetFailoverPriority() {
		key, _, _ := strings.Cut(p, "=")
		if _, is := plan.PlaceLabel(key, ""); is {
			r.Error(manifest.CodeLocality, at.Field("failoverPriority").Index(i), "leave it out", "%s is what zone-aware balancing looks at by itself", key)
		}
	}
	out.ZoneAware = &plan.ZoneAware{}
	if n := in.GetMinClusterSize(); n != nil {
		if n.GetValue() == 0 {
			r.Error(manifest.CodeOutOfRange, at.Field("minClusterSize"), "leave it out for 6", "a least number of endpoints is at least 1")
		}
		out.ZoneAware.MinEndpoints = n.GetValue()
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
	return plan.LeastRequest // also UNSPECIFIED, LEAST_CONN, its old name, and where there is no choice (PASSTHROUGH)
}

// The bounds of consistent hashing (Envoy RingHashLbConfig, MaglevLbConfig).
const (
	maxRing   = 8 << 20
	maxMaglev = 5000011
)

func (r *reader) hash(at manifest.Cursor, in *networking.LoadBalancerSettings_ConsistentHashLB) *plan.Hash {
	out := &plan.Hash{SourceIP: in.GetUseSourceIp(), Query: in.GetHttpQueryParameterName()}
	if name := in.GetHttpHeaderName(); name != "" {
		if !isToken(name) {
			r.Error(manifest.CodeBadValue, at.Field("httpHeaderName"), "letters, digits and '-'", "%q is not the name of a header", name)
		}
		out.Header = strings.ToLower(name)
	}
	if c := in.GetHttpCookie(); c != nil {
		out.Cookie = r.cookie(at.Field("httpCookie"), c)
	}
	if out.Header == "" && out.Cookie == nil && out.Query == "" && !out.SourceIP {
		r.Error(manifest.CodeRequired, at, "add httpHeaderName, httpCookie, httpQueryParameterName or useSourceIp: true", "nothing says what requests are hashed by")
	}
	ring, field := in.GetRingHash().GetMinimumRingSize(), at.Field("ringHash").Field("minimumRingSize")
	if old := in.GetMinimumRingSize(); old > 0 { //nolint:staticcheck // deprecated, and still written
		if in.GetRingHash() != nil || in.GetMaglev() != nil {
			r.Error(manifest.CodeExclusive, at.Field("minimumRingSize"), "keep ringHash or maglev", "`minimumRingSize` excludes `ringHash` and `maglev`")
		}
		ring, field = old, at.Field("minimumRingSize")
	}
	if ring > maxRing {
		r.Error(manifest.CodeOutOfRange, field, "", "a ring of %d entries is too large: at most %d", ring, maxRing)
		ring = 0
	}
	out.RingSize = uint32(ring) //nolint:gosec // bounded above
	if m := in.GetMaglev(); m != nil {
		size, here := m.GetTableSize(), at.Field("maglev").Field("tableSize")
		switch {
		case size == 0:
		case size > maxMaglev || !prime(size):
			r.Error(manifest.CodeOutOfRange, here, "65537 is one", "%d is not a prime number up to %d", size, maxMaglev)
		default:
			out.MaglevSize = uint32(size)
		}
	}
	return out
}

func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

func (r *reader) cookie(at manifest.Cursor, in *networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie) *plan.Cookie {
	out := &plan.Cookie{Name: in.GetName(), Path: in.GetPath(), HasTTL: in.GetTtl() != nil}
	switch {
	case in.GetName() == "":
		r.Error(manifest.CodeRequired, at, "add name: …", "the cookie has no name")
	case !isToken(in.GetName()):
		r.Error(manifest.CodeBadValue, at.Field("name"), "letters, digits and '-'", "%q is not the name of a cookie", in.GetName())
	}
	if out.Path != "" && !cookieText(out.Path) {
		r.Error(manifest.CodeBadValue, at.Field("path"), "", "%q cannot be the path of a cookie", out.Path)
	}
	if d := in.GetTtl(); d != nil {
		if d.AsDuration() < 0 {
			r.Error(manifest.CodeBadDuration, at.Field("ttl"), "0s ends with the client's session", "%v is negative", d.AsDuration())
		}
		out.TTL = plan.Duration(d.AsDuration())
	}
	for i, a := range in.GetAttributes() {
		here := at.Field("attributes").Index(i)
		if a.GetName() == "" {
			r.Error(manifest.CodeRequired, here, "add name: SameSite", "the attribute has no name")
		}
		text := a.GetName()
		if a.GetValue() != "" {
			text += "=" + a.GetValue()
		}
		if !cookieText(text) || strings.Contains(a.GetName(), "=") {
			r.Error(manifest.CodeBadValue, here, "", "%q cannot be an attribute of a cookie", text)
		}
		out.Attributes = append(out.Attributes, text)
	}
	return out
}

// cookieText reports whether s can stand in a Set-Cookie without ending it (RFC 6265 section 4.1.1, av-octet).
func cookieText(s string) bool {
	return !match.HasCTL([]byte(s)) && !strings.ContainsRune(s, ';')
}

// warmup reads how new endpoints get their share. It belongs to the two balancers that count requests.
func (r *reader) warmup(at manifest.Cursor, in *networking.LoadBalancerSettings, b plan.Balancer, passThrough bool) *plan.Warmup {
	w, old := in.GetWarmup(), in.GetWarmupDurationSecs()
	here, field := at.Field("warmup"), at.Field("warmup").Field("duration")
	switch {
	case w == nil && old == nil:
		return nil
	case w != nil && old != nil:
		r.Error(manifest.CodeExclusive, at.Field("warmupDurationSecs"), "keep warmup", "`warmup` and `warmupDurationSecs` exclude each other")
	case w == nil:
		here, field = at.Field("warmupDurationSecs"), at.Field("warmupDurationSecs")
		w = &networking.WarmupConfiguration{Duration: old}
	case w.GetDuration() == nil:
		r.Error(manifest.CodeRequired, here, "add duration: 30s", "the warm-up has no duration")
	}
	out := &plan.Warmup{Duration: plan.Duration(r.duration(field, w.GetDuration(), false))}
	if p := w.GetMinimumPercent(); p != nil {
		// 0 would be the default of a plan; an endpoint without any share would never be seen to work
		out.MinimumPercent = max(r.percent(here.Field("minimumPercent"), p.GetValue()), leastPercent)
	}
	if a := w.GetAggression(); a != nil {
		if a.GetValue() <= 0 {
			r.Error(manifest.CodeOutOfRange, here.Field("aggression"), "1.0 is linear", "an aggression of %v is out of range: more than 0", a.GetValue())
		}
		out.Aggression = a.GetValue()
	}
	if passThrough || b != plan.LeastRequest && b != plan.RoundRobin {
		r.Warning(manifest.CodeIgnoredField, here, "use simple: LEAST_REQUEST or ROUND_ROBIN", "a warm-up has no effect on this load balancer")
		return nil
	}
	return out
}

// leastPercent is the smallest share that a new endpoint starts with, in percent.
const leastPercent = 0.1

// locality reads which places are preferred. distribute excludes the others.
func (r *reader) locality(at manifest.Cursor, in *networking.LocalityLoadBalancerSetting) *plan.Locality {
	out := &plan.Locality{}
	if len(in.GetDistribute()) > 0 && len(in.GetFailover())+len(in.GetFailoverPriority()) > 0 {
		r.Error(manifest.CodeExclusive, at.Field("distribute"), "keep one of them", "`distribute` excludes `failover` and `failoverPriority`")
	}
	var from []string
	for i, d := range in.GetDistribute() {
		here := at.Field("distribute").Index(i)
		if r.place(here.Field("from"), d.GetFrom()) {
			if n := slices.IndexFunc(from, func(other string) bool { return overlaps(other, d.GetFrom()) }); n >= 0 {
				r.Error(manifest.CodeLocality, here.Field("from"), "give each place one entry", "locality %q overlaps %q above", d.GetFrom(), from[n])
			}
			from = append(from, d.GetFrom())
		}
		out.Distribute = append(out.Distribute, plan.Distribution{From: d.GetFrom(), To: r.shares(here.Field("to"), d.GetTo())})
	}
	for i, f := range in.GetFailover() {
		here := at.Field("failover").Index(i)
		r.region(here.Field("from"), f.GetFrom())
		r.region(here.Field("to"), f.GetTo())
		if f.GetFrom() == f.GetTo() && f.GetTo() != "" {
			r.Error(manifest.CodeLocality, here, "name another region", "region %q fails over to itself", f.GetTo())
		}
		if slices.ContainsFunc(out.Failover, func(o plan.Failover) bool { return o.From == f.GetFrom() }) {
			r.Error(manifest.CodeLocality, here.Field("from"), "give each region one entry", "region %q stands twice", f.GetFrom())
		}
		out.Failover = append(out.Failover, plan.Failover{From: f.GetFrom(), To: f.GetTo()})
	}
	for i, p := range in.GetFailoverPriority() {
		key, value, _ := strings.Cut(p, "=")
		if !manifest.IsLabel(key, value) {
			r.Error(manifest.CodeBadValue, at.Field("failoverPriority").Index(i), "write a label, or LABEL=VALUE", "%q is not a label", p)
		}
		out.Priority = append(out.Priority, p)
	}
	return out
}

// shares reads what each place gets: percentages that make 100.
func (r *reader) shares(at manifest.Cursor, in map[string]uint32) []plan.LocalityShare {
	var out []plan.LocalityShare
	var sum uint64
	for _, to := range slices.Sorted(maps.Keys(in)) {
		here := at.Key(to)
		if r.place(here, to) {
			if n := slices.IndexFunc(out, func(other plan.LocalityShare) bool { return overlaps(other.Locality, to) }); n >= 0 {
				r.Error(manifest.CodeLocality, here, "give each place one entry", "locality %q overlaps %q", to, out[n].Locality)
			}
		}
		if in[to] < 1 || in[to] > 100 {
			r.Error(manifest.CodeOutOfRange, here, "leave it out for none", "%d is not a share in percent: from 1 to 100", in[to])
		}
		sum += uint64(in[to])
		out = append(out, plan.LocalityShare{Locality: to, Percent: in[to]})
	}
	if sum != 100 {
		r.Error(manifest.CodeWeights, at, "make them add up to 100", "the shares add up to %d, not 100", sum)
	}
	return out
}

// place checks "region/zone/subzone", of which the end may be missing or a star.
func (r *reader) place(at manifest.Cursor, s string) bool {
	parts := strings.Split(s, "/")
	ok := len(parts) <= 3
	for i, p := range parts {
		ok = ok && p != "" && (!strings.Contains(p, "*") || p == "*" && i == len(parts)-1)
	}
	if !ok {
		r.Error(manifest.CodeLocality, at, "write REGION, REGION/ZONE, REGION/ZONE/SUBZONE or REGION/*", "%q is not a locality", s)
	}
	return ok
}

// region checks the name of a region.
func (r *reader) region(at manifest.Cursor, s string) {
	if s == "" || strings.ContainsAny(s, "/*") {
		r.Error(manifest.CodeLocality, at, "failover is between regions: write REGION", "%q is not a region", s)
	}
}

// overlaps reports whether two localities, each maybe with a star at its end, have a place in common.
func overlaps(a, b string) bool {
	cut := func(s string) string { return strings.TrimSuffix(strings.TrimSuffix(s, "*"), "/") }
	a, b = cut(a), cut(b)
	return a == b || a == "" || b == "" || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}
