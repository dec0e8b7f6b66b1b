package core

import (
	"cmp"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"

	networking "k8s.io/api/networking/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

const (
	networkingGroup    = "networking.k8s.io"
	annotationDefault  = "ingressclass.kubernetes.io/is-default-class"
	istioController    = "istio.io/ingress-controller"
	ownController      = "malha.dev/ingress-controller"
	ingressHTTP        = 80
	ingressHTTPS       = 443
	ingressClassIstio  = "istio"
	ingressClassMalha  = "malha"
	ingressNamePrefix  = "ingress:" // of what an Ingress becomes: no object's name holds a colon
	ingressGatewayName = "ingressgateway"
)

// IngressClassAnnotation names the class of an Ingress, before the field that does.
const IngressClassAnnotation = "kubernetes.io/ingress.class"

// OwnIngressController reports whether the Ingresses of a controller's classes are for this mesh.
func OwnIngressController(name string) bool { return name == istioController || name == ownController }

// OwnIngressClass reports whether the Ingresses of a class that has no IngressClass are for this mesh.
func OwnIngressClass(name string) bool { return name == ingressClassIstio || name == ingressClassMalha }

var ingressType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[networking.IngressSpec](), nil)
})

var ingressFields = manifest.Join(
	manifest.Work("", "ingressClassName", "defaultBackend.service", "tls", "rules[].host", "rules[].http.paths[].path",
		"rules[].http.paths[].pathType", "rules[].http.paths[].backend.service"),
	manifest.Refuse("name a service: there is nothing else that could answer", "defaultBackend.resource", "rules[].http.paths[].backend.resource"),
)

var ingressClassType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[networking.IngressClassSpec](), nil)
})

var ingressClassFields = manifest.Join(
	manifest.Work("", "controller"),
	manifest.Ignore("the gateway has no parameters of this kind", "parameters"),
)

// ingressClass is what is known of an IngressClass.
type ingressClass struct {
	ours, isDefault bool
}

// ingressObject is an Ingress that waits for the classes and Services.
type ingressObject struct {
	object *manifest.Object
	spec   networking.IngressSpec
}

func (d *dialect) ingressClass(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	var in networking.IngressClassSpec
	if !decode(o, spec, &in, r) {
		return
	}
	if in.Controller == "" {
		r.Error(manifest.CodeRequired, o.Spec(), "add controller: "+ownController, "the IngressClass has no controller")
		return
	}
	d.classes[o.Name.Name] = ingressClass{
		ours:      OwnIngressController(in.Controller),
		isDefault: o.Annotations[annotationDefault] == "true",
	}
}

// ingress checks an Ingress by itself; translateIngresses does the rest.
func (d *dialect) ingress(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	in := ingressObject{object: o}
	usable := true
	if !decode(o, spec, &in.spec, r) {
		return
	}
	_, before := r.Len()
	at := o.Spec()
	if in.spec.DefaultBackend == nil && len(in.spec.Rules) == 0 {
		r.Error(manifest.CodeIngress, at, "add rules, or a defaultBackend", "the Ingress has neither rules nor a defaultBackend")
	}
	if b := in.spec.DefaultBackend; b != nil {
		usable = checkBackend(b, at.Field("defaultBackend"), r) && usable
	}
	for i := range in.spec.Rules {
		rule, here := &in.spec.Rules[i], at.Field("rules").Index(i)
		if rule.Host != "" {
			host, err := ident.CanonicalHost(rule.Host, true)
			if err != nil || host == "*" || strings.Contains(host, ":") {
				r.Error(manifest.CodeBadHost, here.Field("host"), "write a name such as shop.example.com or *.example.com", "%q is not a host", rule.Host)
			}
			rule.Host = host
		}
		if rule.HTTP == nil {
			continue
		}
		if len(rule.HTTP.Paths) == 0 {
			r.Error(manifest.CodeRequired, here.Field("http"), "add paths: [{path: /, pathType: Prefix, backend: …}]", "the rule has no paths")
		}
		for j := range rule.HTTP.Paths {
			p, at := &rule.HTTP.Paths[j], here.Field("http").Field("paths").Index(j)
			usable = checkBackend(&p.Backend, at.Field("backend"), r) && usable
			checkPath(p, at, r)
		}
	}
	for i := range in.spec.TLS {
		t, here := &in.spec.TLS[i], at.Field("tls").Index(i)
		for j, h := range t.Hosts {
			host, err := ident.CanonicalHost(h, true)
			if err != nil {
				r.Error(manifest.CodeBadHost, here.Field("hosts").Index(j), "write a name such as shop.example.com", "%q is not a host", h)
			}
			t.Hosts[j] = host
		}
		if t.SecretName == "" {
			r.Error(manifest.CodeIngress, here, "add secretName: a Secret of type kubernetes.io/tls in this namespace", "TLS needs a certificate: there is no default one")
		}
	}
	if _, after := r.Len(); usable && after == before {
		d.ingresses = append(d.ingresses, in)
	}
}

// checkBackend reports whether a backend leads to a service. One that is a resource was refused by the table of fields.
func checkBackend(b *networking.IngressBackend, at manifest.Cursor, r *manifest.Report) bool {
	switch {
	case b.Service == nil && b.Resource == nil:
		r.Error(manifest.CodeRequired, at, "add service: {name: …, port: {number: …}}", "the backend names no service")
	case b.Service == nil:
		return false
	case b.Service.Name == "":
		r.Error(manifest.CodeRequired, at.Field("service"), "add name: …", "the service has no name")
	case b.Service.Port.Name == "" && b.Service.Port.Number == 0:
		r.Error(manifest.CodeRequired, at.Field("service"), "add port: {number: …}, or its name", "the service has no port")
	case b.Service.Port.Name != "" && b.Service.Port.Number != 0:
		r.Error(manifest.CodeExclusive, at.Field("service").Field("port"), "keep one of them", "`name` and `number` exclude each other")
	}
	return true
}

func checkPath(p *networking.HTTPIngressPath, at manifest.Cursor, r *manifest.Report) {
	kind := networking.PathType("")
	if p.PathType != nil {
		kind = *p.PathType
	}
	switch kind {
	case networking.PathTypeExact, networking.PathTypePrefix:
		if !strings.HasPrefix(p.Path, "/") {
			r.Error(manifest.CodeIngress, at, "begin it with /", "a path of type %s is absolute; %q is not", kind, p.Path)
		}
	case networking.PathTypeImplementationSpecific:
		if p.Path != "" && !strings.HasPrefix(p.Path, "/") {
			r.Error(manifest.CodeIngress, at.Field("path"), "begin it with /", "%q is not an absolute path", p.Path)
		}
	case "":
		r.Error(manifest.CodeRequired, at, "add pathType: Prefix", "the path has no pathType")
	default:
		r.Error(manifest.CodeBadEnum, at.Field("pathType"), manifest.DidYouMean(string(kind), []string{"Exact", "Prefix", "ImplementationSpecific"}), "unknown pathType %q", kind)
	}
}

// ours reports whether an Ingress is for this mesh's gateway. On one machine there is no other controller, so one without a
// class is.
func (d *dialect) ours(in *ingressObject, r *manifest.Report) bool {
	at := in.object.Spec().Field("ingressClassName")
	name := ""
	if c := in.spec.IngressClassName; c != nil {
		name = *c
	}
	if a, ok := in.object.Annotations[IngressClassAnnotation]; ok {
		at, name = in.object.Root().Field("metadata").Field("annotations").Key(IngressClassAnnotation), a
	}
	class, known := d.classes[name]
	switch {
	case known && class.ours, !known && OwnIngressClass(name):
		return true
	case name != "":
		r.Warning(manifest.CodeIngress, at, "use class "+ingressClassMalha+" or "+ingressClassIstio+", or leave it out", "the Ingress is for another controller (class %s): this gateway does not serve it", name)
		return false
	}
	for other, c := range d.classes {
		if c.isDefault && !c.ours {
			r.Warning(manifest.CodeIngress, at, "use class "+ingressClassMalha, "the Ingress is for the default class %s, which is another controller's: this gateway does not serve it", other)
			return false
		}
	}
	return true
}

// translateIngresses makes a Gateway and Routings of each Ingress, as Istio does: port 80 for all hosts, port 443 for those with
// TLS. Among the paths of a host exact ones come first, then the longer (Kubernetes "Ingress: multiple matches").
func (d *dialect) translateIngresses(out *model.Config, r *manifest.Report) {
	slices.SortFunc(d.ingresses, func(a, b ingressObject) int { return a.object.Name.Compare(b.object.Name) })
	for i := range d.ingresses {
		in := &d.ingresses[i]
		if !d.ours(in, r) {
			continue
		}
		foreignAnnotations(in.object, r)
		_, before := r.Len()
		t := ingressTranslation{in: in, out: out, r: r}
		gateway, routings := t.gateway(), t.routings()
		if _, after := r.Len(); after > before {
			continue
		}
		out.Gateways = append(out.Gateways, gateway)
		out.Routings = append(out.Routings, routings...)
		// Where it is reached is all that its status says, and for whoever writes statuses to find out.
		out.Statuses = append(out.Statuses, model.Status{Group: networkingGroup, Kind: "Ingress", Name: in.object.Name, Generation: in.object.Generation})
	}
}

// controllerGroups are groups of annotations in which other controllers extend Ingress, besides those that say so by their name.
var controllerGroups = []string{"haproxy.org", "konghq.com", "projectcontour.io"}

// foreignAnnotations tells that what another controller would read out of an Ingress of ours is not in force.
func foreignAnnotations(o *manifest.Object, r *manifest.Report) {
	for _, key := range slices.Sorted(maps.Keys(o.Annotations)) {
		group, _, _ := strings.Cut(key, "/")
		if strings.Contains(group, "ingress") || slices.Contains(controllerGroups, group) {
			r.Warning(manifest.CodeIngress, o.Root().Field("metadata").Field("annotations").Key(key),
				"rewrites, redirects, timeouts and the like are fields of a VirtualService or an HTTPRoute", "%s has no effect: it is about another controller", key)
		}
	}
}

type ingressTranslation struct {
	in  *ingressObject
	out *model.Config
	r   *manifest.Report
}

func (t *ingressTranslation) meta() model.Meta {
	m := t.in.object.Meta()
	m.Name.Name = ingressNamePrefix + m.Name.Name
	return m
}

func (t *ingressTranslation) gateway() model.Gateway {
	o := t.in.object
	any := o.Name.Namespace + "/*"
	g := model.Gateway{Meta: t.meta(), Selector: map[string]string{"istio": ingressGatewayName}}
	g.Servers = append(g.Servers, model.Server{Name: "http", Port: ingressHTTP, Protocol: ident.HTTP, Hosts: []string{any}, Origin: o.Origin})
	for i, tls := range t.in.spec.TLS {
		s := model.Server{
			Name: "https", Port: ingressHTTPS, Protocol: ident.HTTP, Origin: o.Spec().Field("tls").Index(i).Origin(),
			TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{o.Name.Namespace + "/" + tls.SecretName}},
		}
		for _, h := range tls.Hosts {
			s.Hosts = append(s.Hosts, o.Name.Namespace+"/"+h)
		}
		if len(s.Hosts) == 0 {
			s.Hosts = []string{any}
		}
		g.Servers = append(g.Servers, s)
	}
	return g
}

// routings makes one Routing for each host, and one for every host when there is a default backend.
func (t *ingressTranslation) routings() []model.Routing {
	at := t.in.object.Spec()
	byHost := map[string]*model.Routing{}
	var hosts []string
	routing := func(host string) *model.Routing {
		rt := byHost[host]
		if rt == nil {
			rt = &model.Routing{Meta: t.meta(), Hosts: []string{host}, Gateways: []string{t.meta().Name.String()}, ExportTo: []string{"*"}, Precedence: true}
			byHost[host] = rt
			hosts = append(hosts, host)
		}
		return rt
	}
	for i, rule := range t.in.spec.Rules {
		host := cmp.Or(rule.Host, "*")
		rt, here := routing(host), at.Field("rules").Index(i)
		if rule.HTTP == nil { // everything for this host goes to the default backend
			continue
		}
		for j := range rule.HTTP.Paths {
			p, at := &rule.HTTP.Paths[j], here.Field("http").Field("paths").Index(j)
			m := model.HTTPMatch{Match: plan.Match{Path: pathMatch(p), Authority: oneLabel(host)}, Origin: at.Origin()}
			rt.HTTP = append(rt.HTTP, model.HTTPRule{Origin: at.Origin(), Matches: []model.HTTPMatch{m}, Forward: t.forward(&p.Backend, at.Field("backend"))})
		}
	}
	if b := t.in.spec.DefaultBackend; b != nil {
		routing("*")
		last := model.HTTPRule{Origin: at.Field("defaultBackend").Origin(), Forward: t.forward(b, at.Field("defaultBackend"))}
		for _, h := range hosts {
			rule := last
			if a := oneLabel(h); a != nil {
				rule.Matches = []model.HTTPMatch{{Match: plan.Match{Authority: a}, Origin: last.Origin}}
			}
			byHost[h].HTTP = append(byHost[h].HTTP, rule)
		}
	}
	var out []model.Routing
	for _, h := range hosts {
		if len(byHost[h].HTTP) > 0 {
			out = append(out, *byHost[h])
		}
	}
	return out
}

// oneLabel is the condition that a wildcard stands for one label only (Kubernetes "Ingress: hostname wildcards"); ours are for
// one or more. nil for other hosts.
func oneLabel(host string) *match.String {
	suffix, ok := strings.CutPrefix(host, "*.")
	if !ok {
		return nil
	}
	return &match.String{Kind: match.Regex, Value: `(?i)[^.:]+\.` + regexp.QuoteMeta(suffix) + `\.?(:[0-9]+)?`}
}

// pathMatch follows Istio for ImplementationSpecific: "/a.*" and "/a/*" are prefixes, everything else is exact.
func pathMatch(p *networking.HTTPIngressPath) *match.String {
	switch *p.PathType {
	case networking.PathTypeExact:
		return &match.String{Kind: match.Exact, Value: p.Path}
	case networking.PathTypePrefix:
		return segments(p.Path)
	}
	if p.Path == "" {
		return segments("/")
	}
	if before, ok := strings.CutSuffix(p.Path, ".*"); ok {
		return &match.String{Kind: match.Prefix, Value: before}
	}
	if before, ok := strings.CutSuffix(p.Path, "/*"); ok {
		return segments(before)
	}
	return &match.String{Kind: match.Exact, Value: p.Path}
}

// segments is a prefix by whole elements; a slash at the end means nothing.
func segments(path string) *match.String {
	if path = strings.TrimRight(path, "/"); path == "" {
		path = "/"
	}
	return &match.String{Kind: match.Segment, Value: path}
}

// forward returns the service of a backend; the name of a port is looked up.
func (t *ingressTranslation) forward(b *networking.IngressBackend, at manifest.Cursor) []model.WeightedDestination {
	at = at.Field("service")
	target := model.Target{
		Host: ident.ServiceHost(ident.Name{Namespace: t.in.object.Name.Namespace, Name: b.Service.Name}),
		Port: int(b.Service.Port.Number), Origin: at.Origin(),
	}
	if name := b.Service.Port.Name; name != "" {
		target.Port = t.port(target.Host, name, at, b.Service.Name)
	}
	return []model.WeightedDestination{{Target: target, Weight: 1}}
}

func (t *ingressTranslation) port(host, name string, at manifest.Cursor, service string) int {
	for i := range t.out.Services {
		s := &t.out.Services[i]
		if s.Host != host {
			continue
		}
		var names []string
		for _, p := range s.Ports {
			if p.Name == name {
				return p.Port
			}
			names = append(names, p.Name)
		}
		t.r.Error(manifest.CodeIngress, at.Field("port").Field("name"), manifest.DidYouMean(name, names), "Service %s has no port %q", service, name)
		return 0
	}
	t.r.Error(manifest.CodeIngress, at.Field("name"), "add it, or correct the name", "there is no Service %s in namespace %s", service, t.in.object.Name.Namespace)
	return 0
}
