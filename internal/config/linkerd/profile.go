package linkerd

import (
	"cmp"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

var profileType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[profileSpec](), nil) })

var profileFields = manifest.Join(
	manifest.Work("", "routes", "retryBudget", "dstOverrides", "opaquePorts"),
)

type profileSpec struct {
	Routes       []route       `json:"routes"`
	RetryBudget  *retryBudget  `json:"retryBudget"`
	DstOverrides []dstOverride `json:"dstOverrides"`
	OpaquePorts  any           `json:"opaquePorts"`
}

type route struct {
	Name            string            `json:"name"`
	Condition       *requestMatch     `json:"condition"`
	ResponseClasses []responseClass   `json:"responseClasses"`
	IsRetryable     bool              `json:"isRetryable"`
	Timeout         manifest.Duration `json:"timeout"`
}

// requestMatch holds when every field that is set does. `not` is a list in the CRD and an object in the controller.
type requestMatch struct {
	PathRegex string                            `json:"pathRegex"`
	Method    string                            `json:"method"`
	All       []*requestMatch                   `json:"all"`
	Any       []*requestMatch                   `json:"any"`
	Not       manifest.OneOrMany[*requestMatch] `json:"not"`
}

type responseClass struct {
	Condition *responseMatch `json:"condition"`
	IsFailure bool           `json:"isFailure"`
}

type responseMatch struct {
	Status *statusRange                       `json:"status"`
	All    []*responseMatch                   `json:"all"`
	Any    []*responseMatch                   `json:"any"`
	Not    manifest.OneOrMany[*responseMatch] `json:"not"`
}

type statusRange struct {
	Min uint32 `json:"min"`
	Max uint32 `json:"max"`
}

type retryBudget struct {
	RetryRatio          float64           `json:"retryRatio"`
	MinRetriesPerSecond uint32            `json:"minRetriesPerSecond"`
	TTL                 manifest.Duration `json:"ttl"`
}

type dstOverride struct {
	Authority string         `json:"authority"`
	Weight    manifest.Milli `json:"weight"`
}

// opaquePorts reads ports, which are a list in the CRD and the keys of an object in the controller.
func (r reader) opaquePorts(at manifest.Cursor, in any) portSet {
	var words []string
	switch v := in.(type) {
	case []any:
		for i, e := range v {
			switch e := e.(type) {
			case float64:
				words = append(words, strconv.FormatFloat(e, 'f', -1, 64))
			case string:
				words = append(words, e)
			default:
				r.Error(manifest.CodeWrongType, at.Index(i), "write opaquePorts: [3306, 5432]", "want the number of a port")
			}
		}
	case map[string]any:
		for k := range v {
			words = append(words, k)
		}
	default:
		r.Error(manifest.CodeWrongType, at, "write opaquePorts: [3306, 5432]", "want a list of ports")
	}
	set, bad := parsePorts(strings.Join(words, ","))
	if bad != "" || len(set.names) > 0 {
		r.Error(manifest.CodeOutOfRange, at, "write opaquePorts: [3306, 5432]", "%q is not the number of a port", cmp.Or(bad, strings.Join(set.names, ",")))
	}
	return set
}

// reader reads one object.
type reader struct{ *manifest.Report }

func (d *dialect) profile(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := reader{report}, o.Spec()
	_, before := r.Len()
	var in profileSpec
	if !decode(o, spec, &in, report) {
		return
	}
	p := model.Profile{Meta: o.Meta()}
	host, err := ident.CanonicalHost(o.Name.Name, false)
	if err != nil || !strings.Contains(host, ".") {
		r.Error(manifest.CodeProfile, o.Root().Field("metadata").Field("name"), "name it "+ident.ServiceHost(o.Name),
			"a ServiceProfile is named after the full host of its Service; %q is none", o.Name.Name)
	}
	p.Host = host
	lines := map[string]int{}
	for i := range in.Routes {
		here := at.Field("routes").Index(i)
		name := in.Routes[i].Name
		if line, twice := lines[name]; twice && name != "" {
			r.Warning(manifest.CodeProfile, here.Field("name"), "give it another name", "route %q stands twice, first on line %d: their metrics are counted together", name, line)
		}
		lines[name] = here.Line()
		p.Routes = append(p.Routes, r.route(here, &in.Routes[i]))
	}
	if in.RetryBudget != nil {
		p.RetryBudget = r.budget(at.Field("retryBudget"), in.RetryBudget)
	}
	weights := uint64(0)
	for i, d := range in.DstOverrides {
		weights += uint64(d.Weight)
		if b, ok := r.override(at.Field("dstOverrides").Index(i), d); ok {
			p.Overrides = append(p.Overrides, b)
		}
	}
	if len(in.DstOverrides) > 0 && weights == 0 {
		r.Warning(manifest.CodeWeights, at.Field("dstOverrides"), "give one a weight", "every override has weight 0: requests go to the Service itself")
	}
	var opaque portSet
	if at.Field("opaquePorts").Set() {
		opaque = r.opaquePorts(at.Field("opaquePorts"), in.OpaquePorts)
	}
	if _, after := r.Len(); after == before { // of several for one host each has a say
		set := d.profiles[host]
		set.ranges = append(set.ranges, opaque.ranges...)
		d.profiles[host] = set
	}
	out.Profiles = append(out.Profiles, p)
}

func (r reader) route(at manifest.Cursor, in *route) model.ProfileRoute {
	out := model.ProfileRoute{Name: in.Name, Retryable: in.IsRetryable, Timeout: time.Duration(in.Timeout), Origin: at.Origin()}
	if in.Name == "" {
		r.Error(manifest.CodeRequired, at, "add name: GET /path", "the route has no name")
	}
	if in.Condition == nil {
		r.Error(manifest.CodeRequired, at, "add condition: {method: GET, pathRegex: /path}", "the route has no condition")
	} else {
		out.Cond = r.request(at.Field("condition"), in.Condition)
	}
	if in.Timeout < 0 {
		r.Error(manifest.CodeBadDuration, at.Field("timeout"), "", "a timeout is not negative")
	}
	for i, c := range in.ResponseClasses {
		here := at.Field("responseClasses").Index(i)
		if c.Condition == nil {
			r.Error(manifest.CodeRequired, here, "add condition: {status: {min: 500, max: 599}}", "the response class has no condition")
			continue
		}
		out.Classes = append(out.Classes, plan.ResponseClass{Cond: r.response(here.Field("condition"), c.Condition), Failure: c.IsFailure})
	}
	return out
}

func (r reader) request(at manifest.Cursor, in *requestMatch) plan.Cond {
	var out plan.Cond
	if in.PathRegex != "" {
		out.Path = &match.String{Kind: match.Regex, Value: in.PathRegex}
		if _, err := out.Path.Compile(); err != nil {
			r.Error(manifest.CodeBadRegex, at.Field("pathRegex"), "regular expressions are RE2 and must match the whole path", "%v", err)
		}
	}
	if in.Method != "" {
		out.Method = &match.String{Kind: match.Exact, Value: in.Method}
	}
	for i, c := range in.All {
		out.All = append(out.All, r.request(at.Field("all").Index(i), c))
	}
	for i, c := range in.Any {
		out.Any = append(out.Any, r.request(at.Field("any").Index(i), c))
	}
	switch len(in.Not) {
	case 0:
	case 1:
		c := r.request(element(at.Field("not"), 0), in.Not[0])
		out.Not = &c
	default: // none of them
		var either plan.Cond
		for i, c := range in.Not {
			either.Any = append(either.Any, r.request(element(at.Field("not"), i), c))
		}
		out.Not = &either
	}
	r.empty(at, "any", in.Any != nil && len(in.Any) == 0)
	if in.PathRegex == "" && in.Method == "" && len(in.All)+len(in.Any)+len(in.Not) == 0 {
		r.Error(manifest.CodeProfile, at, "add pathRegex or method", "the condition asks for nothing")
	}
	return out
}

// element is a place in `not`, which may be written as a list or alone.
func element(at manifest.Cursor, i int) manifest.Cursor {
	if e := at.Index(i); e.Set() {
		return e
	}
	return at
}

func (r reader) empty(at manifest.Cursor, field string, is bool) {
	if is {
		r.Error(manifest.CodeProfile, at.Field(field), "remove it", "`%s` is an empty list", field)
	}
}

func (r reader) response(at manifest.Cursor, in *responseMatch) plan.StatusCond {
	var out plan.StatusCond
	if in.Status != nil {
		out.Min, out.Max = r.status(at.Field("status"), in.Status)
	}
	for i, c := range in.All {
		out.All = append(out.All, r.response(at.Field("all").Index(i), c))
	}
	for i, c := range in.Any {
		out.Any = append(out.Any, r.response(at.Field("any").Index(i), c))
	}
	switch len(in.Not) {
	case 0:
	case 1:
		c := r.response(element(at.Field("not"), 0), in.Not[0])
		out.Not = &c
	default:
		var either plan.StatusCond
		for i, c := range in.Not {
			either.Any = append(either.Any, r.response(element(at.Field("not"), i), c))
		}
		out.Not = &either
	}
	r.empty(at, "any", in.Any != nil && len(in.Any) == 0)
	if in.Status == nil && len(in.All)+len(in.Any)+len(in.Not) == 0 {
		r.Error(manifest.CodeProfile, at, "add status: {min: 500, max: 599}", "the condition asks for nothing")
	}
	return out
}

// status reads a range of status codes. A lone bound means exactly that code (Linkerd reference, "status").
func (r reader) status(at manifest.Cursor, in *statusRange) (lo, hi int) {
	for _, f := range []string{"min", "max"} {
		n := map[string]uint32{"min": in.Min, "max": in.Max}[f]
		if at.Field(f).Set() && (n < 100 || n > 599) {
			r.Error(manifest.CodeOutOfRange, at.Field(f), "from 100 to 599", "%d is not a status code", n)
		}
	}
	lo, hi = int(in.Min), int(in.Max)
	switch {
	case lo == 0 && hi == 0:
		r.Error(manifest.CodeProfile, at, "add min: 500 and max: 599", "the range has no bounds")
	case lo == 0 || hi == 0:
		lo, hi = max(lo, hi), max(lo, hi)
		r.Warning(manifest.CodeProfile, at, "write both min and max", "a range with one bound is that status alone: %d", lo)
	case lo > hi:
		r.Error(manifest.CodeProfile, at, "swap them", "the range is empty: min %d is above max %d", lo, hi)
	}
	return lo, hi
}

func (r reader) budget(at manifest.Cursor, in *retryBudget) plan.RetryBudget {
	for _, f := range []string{"retryRatio", "minRetriesPerSecond", "ttl"} {
		if !at.Field(f).Set() {
			r.Error(manifest.CodeRequired, at, "the defaults are retryRatio: 0.2, minRetriesPerSecond: 10, ttl: 10s", "the budget has no %s", f)
		}
	}
	if in.RetryRatio < 0 || in.RetryRatio > 1000 {
		r.Error(manifest.CodeOutOfRange, at.Field("retryRatio"), "0.2 is a fifth", "%v is out of range: from 0 to 1000", in.RetryRatio)
	}
	if ttl := time.Duration(in.TTL); at.Field("ttl").Set() && (ttl < time.Second || ttl > time.Minute) {
		r.Error(manifest.CodeOutOfRange, at.Field("ttl"), "10s is usual", "%v is out of range: from 1s to 60s", ttl)
	}
	return plan.RetryBudget{Ratio: in.RetryRatio, MinPerSecond: in.MinRetriesPerSecond, TTL: plan.Duration(in.TTL)}
}

func (r reader) override(at manifest.Cursor, in dstOverride) (model.SplitBackend, bool) {
	if in.Authority == "" {
		r.Error(manifest.CodeRequired, at, "add authority: name.namespace.svc."+ident.ClusterDomain, "the override has no authority")
		return model.SplitBackend{}, false
	}
	name, number, hasPort := strings.Cut(in.Authority, ":")
	port := 0 // the one asked for
	if hasPort {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			r.Error(manifest.CodeOutOfRange, at.Field("authority"), "from 1 to 65535, or leave it out: then the one asked for is kept", "%q is no port", number)
			return model.SplitBackend{}, false
		}
		port = int(n)
	}
	host, err := ident.CanonicalHost(name, false)
	if err != nil || !strings.Contains(host, ".") {
		r.Error(manifest.CodeBadHost, at.Field("authority"), "write name.namespace.svc."+ident.ClusterDomain, "%q is not the full host of a Service", in.Authority)
		return model.SplitBackend{}, false
	}
	return model.SplitBackend{Host: host, Port: port, Weight: uint32(in.Weight), Origin: at.Origin()}, in.Weight > 0 // zero weights are dropped
}
