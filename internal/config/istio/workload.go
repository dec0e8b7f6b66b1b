package istio

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

var workloadEntryFields = manifest.Join(
	manifest.Work("", "address", "ports", "labels", "locality", "weight", "serviceAccount"),
	manifest.Ignore("endpoints are reached by their address, whatever their network is", "network"),
)

// groupAnnotation names the WorkloadGroup that an entry, or a Workload, is of.
const groupAnnotation = "istio.io/autoRegistrationGroup"

func (d *dialect) workloadEntry(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.WorkloadEntry{}
	if !r.decode(spec, in) {
		return
	}
	e := r.entry(at, in, o.Name.Namespace)
	e.Origin = o.Origin
	meta := o.Meta()
	meta.Labels = maps.Clone(o.Labels) // Istio: those of the spec win
	if meta.Labels == nil && e.Labels != nil {
		meta.Labels = map[string]string{}
	}
	maps.Copy(meta.Labels, e.Labels)
	e.Labels = meta.Labels
	out.Endpoints = append(out.Endpoints, model.EndpointGroup{Meta: meta, Endpoints: []model.ServiceEndpoint{e}})
}

var workloadGroupFields = manifest.Join(
	manifest.Work("", "metadata.labels"),
	manifest.Differ("its members name it with the annotation "+groupAnnotation+": nothing registers by itself", "template.ports", "template.labels", "template.locality",
		"template.weight", "template.serviceAccount"),
	manifest.Differ("asked by the sidecar of a Workload that is a member; a WorkloadEntry is taken as ready", "probe"),
	manifest.Ignore("annotations of endpoints mean nothing to the mesh", "metadata.annotations"),
	manifest.Ignore("each entry has its own", "template.address"),
	manifest.Ignore("endpoints are reached by their address, whatever their network is", "template.network"),
	manifest.Refuse("use httpGet, tcpSocket or grpc: a proxy runs no commands", "probe.exec"),
	manifest.Ignore("the sidecar asks the program beside it", "probe.tcpSocket.host"),
	manifest.Ignore("a workload gets no requests until its probe succeeds", "probe.initialDelaySeconds"),
)

// group is a WorkloadGroup: what its members have unless they say otherwise.
type group struct {
	labels   map[string]string
	template model.ServiceEndpoint
	check    *plan.HealthCheck
	port     int // of check
	broken   bool
}

func (d *dialect) workloadGroup(o *manifest.Object, spec []byte, _ *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.WorkloadGroup{}
	if !r.decode(spec, in) {
		return
	}
	g := &group{labels: maps.Clone(in.GetMetadata().GetLabels())}
	d.groups[o.Name] = g // also one with mistakes: that its members name it is none of theirs
	defer func() { g.broken = r.Broken(o) }()
	r.selector(at.Field("metadata").Field("labels"), in.GetMetadata().GetLabels())
	r.few(at.Field("metadata").Field("labels"), len(in.GetMetadata().GetLabels()), 256)
	r.few(at.Field("metadata").Field("annotations"), len(in.GetMetadata().GetAnnotations()), 256)
	if in.GetTemplate() == nil {
		r.Error(manifest.CodeRequired, at, "add template: {serviceAccount: …}", "the WorkloadGroup has no template")
		return
	}
	template := networking.WorkloadEntry{
		Address: "192.0.2.1", // an entry needs one, a template does not
		Ports:   in.GetTemplate().GetPorts(), Labels: in.GetTemplate().GetLabels(), Locality: in.GetTemplate().GetLocality(),
		Weight: in.GetTemplate().GetWeight(), ServiceAccount: in.GetTemplate().GetServiceAccount(),
	}
	g.template = r.entry(at.Field("template"), &template, o.Name.Namespace)
	if g.labels == nil {
		g.labels = map[string]string{}
	}
	maps.Copy(g.labels, g.template.Labels)
	g.check, g.port = r.probe(at.Field("probe"), in.GetProbe())
}

// The times of a probe when it does not say (Istio ReadinessProbe).
const (
	probePeriod  = 10 * time.Second
	probeTimeout = time.Second
	probeFails   = 3
	probePasses  = 1
)

// probe reads how to find out whether the program is ready.
func (r *reader) probe(at manifest.Cursor, in *networking.ReadinessProbe) (*plan.HealthCheck, int) {
	if in == nil {
		return nil, 0
	}
	seconds := func(field string, n int32, otherwise time.Duration) plan.Duration {
		if n == 0 {
			return plan.Duration(otherwise)
		}
		return plan.Duration(time.Duration(r.count(at.Field(field), n)) * time.Second)
	}
	times := func(field string, n int32, otherwise uint32) uint32 {
		if n == 0 {
			return otherwise
		}
		return r.count(at.Field(field), n)
	}
	out := &plan.HealthCheck{
		Interval:  seconds("periodSeconds", in.GetPeriodSeconds(), probePeriod),
		Timeout:   seconds("timeoutSeconds", in.GetTimeoutSeconds(), probeTimeout),
		Unhealthy: times("failureThreshold", in.GetFailureThreshold(), probeFails),
		Healthy:   times("successThreshold", in.GetSuccessThreshold(), probePasses),
	}
	r.count(at.Field("initialDelaySeconds"), in.GetInitialDelaySeconds())
	var port manifest.Cursor
	var number uint32
	switch m := in.GetHealthCheckMethod().(type) {
	case *networking.ReadinessProbe_HttpGet:
		here := at.Field("httpGet")
		port, number = here.Field("port"), m.HttpGet.GetPort()
		out.Path, out.Host = "/", r.authority(here.Field("host"), m.HttpGet.GetHost())
		if p := m.HttpGet.GetPath(); p != "" {
			if !strings.HasPrefix(p, "/") {
				r.Error(manifest.CodeBadValue, here.Field("path"), "start it with /", "%q is not a path", p)
			}
			r.path(here.Field("path"), p)
			out.Path = p
		}
		if s := m.HttpGet.GetScheme(); s != "" && s != "HTTP" && s != "HTTPS" {
			r.Error(manifest.CodeBadEnum, here.Field("scheme"), "use HTTP or HTTPS", "unknown scheme %q", s)
		}
		out.TLS = m.HttpGet.GetScheme() == "HTTPS"
		r.probeHeaders(here.Field("httpHeaders"), m.HttpGet.GetHttpHeaders(), out)
	case *networking.ReadinessProbe_TcpSocket:
		port, number = at.Field("tcpSocket").Field("port"), m.TcpSocket.GetPort()
	case *networking.ReadinessProbe_Grpc:
		port, number = at.Field("grpc").Field("port"), m.Grpc.GetPort()
		out.GRPC, out.Host = true, m.Grpc.GetService()
	default: // exec was refused
		if !at.Field("exec").Set() {
			r.Error(manifest.CodeRequired, at, "add httpGet: {path: /healthz, port: 8080}", "the probe asks nothing")
		}
		return nil, 0
	}
	if number == 0 && !port.Set() {
		r.Error(manifest.CodeRequired, port, "add port: 8080", "the probe has no port")
	}
	return out, r.port(port, number)
}

// probeHeaders reads what is sent with a probe. Host is the authority, as for kubelet.
func (r *reader) probeHeaders(at manifest.Cursor, in []*networking.HTTPHeader, out *plan.HealthCheck) {
	for i, h := range in {
		here := at.Index(i)
		name, value := strings.ToLower(h.GetName()), h.GetValue()
		if name == "host" {
			out.Host = r.authority(here.Field("value"), value)
			continue
		}
		if match.HasCTL([]byte(value)) {
			r.Error(manifest.CodeHeaderOp, here.Field("value"), "", "the value has a control character")
		}
		if isToken(name) && !probeHeader.MatchString(name) {
			r.Error(manifest.CodeHeaderOp, here.Field("name"), "letters, digits, '-' and '_'", "%q is not the name of a probe's header", h.GetName())
		} else if r.mayChange(here.Field("name"), name) {
			out.Headers = append(out.Headers, plan.Field{Name: name, Value: value})
		}
	}
}

// probeHeader is the name of a header in a probe (HTTPHeader, its CRD).
var probeHeader = regexp.MustCompile(`^[-_a-z0-9]+$`)

// finish gives the members of each WorkloadGroup what they do not say themselves.
func (d *dialect) finish(out *model.Config, r *manifest.Report) {
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		g := d.group(member{"WorkloadEntry", e.Name}, r)
		if g == nil || e.Origin.Kind != "WorkloadEntry" {
			continue
		}
		e.Labels = over(g.labels, e.Labels)
		for n := range e.Endpoints {
			g.fill(&e.Endpoints[n], e.Labels)
		}
	}
	for i := range out.Workloads {
		w := &out.Workloads[i]
		g := d.group(member{"Workload", w.Name}, r)
		if g == nil {
			continue
		}
		w.Labels = over(g.labels, w.Labels)
		if w.Locality == "" {
			w.Locality = g.template.Locality
		}
		if w.Weight == 0 {
			w.Weight = g.template.Weight
		}
		if w.Check == nil && g.check != nil {
			w.Check, w.CheckPort = g.check, g.port
			if !slices.ContainsFunc(w.Ports, func(p model.WorkloadPort) bool { return p.Port == g.port }) {
				r.Error(manifest.CodeEntry, d.members[member{"Workload", w.Name}].at, "add the port to spec.ports", "the probe of WorkloadGroup %s asks port %d, which the Workload does not have", d.members[member{"Workload", w.Name}].name, g.port)
			}
		}
	}
}

// member is an object that may be of a group.
type member struct {
	kind string
	name ident.Name
}

// group returns the WorkloadGroup of an object; nil when it is of none.
func (d *dialect) group(m member, r *manifest.Report) *group {
	at, ok := d.members[m]
	if !ok {
		return nil
	}
	name := ident.Name{Namespace: m.name.Namespace, Name: at.name}
	g := d.groups[name]
	if g == nil {
		r.Error(manifest.CodeEntry, at.at, "add the WorkloadGroup, or remove the annotation", "WorkloadGroup %s does not exist", name)
	} else if g.broken {
		return nil
	}
	return g
}

func (g *group) fill(e *model.ServiceEndpoint, labels map[string]string) {
	e.Labels = labels
	if e.Locality == "" {
		e.Locality = g.template.Locality
	}
	if e.Weight == 0 {
		e.Weight = g.template.Weight
	}
	if e.Identity.IsZero() {
		e.Identity = g.template.Identity
	}
	e.Ports = over(g.template.Ports, e.Ports)
}

// over returns the entries of both maps, those of the second where they have the same key.
func over[V any](below, above map[string]V) map[string]V {
	if len(below) == 0 {
		return above
	}
	out := maps.Clone(below)
	maps.Copy(out, above)
	return out
}

// annotate remembers which group an object is of.
func (d *dialect) annotate(o *manifest.Object, _ *model.Config, r *manifest.Report) {
	name, ok := o.Annotations[groupAnnotation]
	if !ok || o.Kind != "WorkloadEntry" && o.Kind != "Workload" {
		return
	}
	at := o.Root().Field("metadata").Field("annotations").Key(groupAnnotation)
	if !manifest.IsSubdomain(name) {
		r.Error(manifest.CodeBadValue, at, "write the name of a WorkloadGroup", "%q is not the name of a WorkloadGroup", name)
		return
	}
	d.members[member{o.Kind, o.Name}] = membership{name, at}
}

// membership is the group that an object says it is of, and where it says so.
type membership struct {
	name string
	at   manifest.Cursor
}
