package kube

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Codes of what is wrong between the mesh and the API server.
const (
	CodeForbidden = "MALHA1101" // a kind, or an object that another one names, that may not be read
	CodeUnread    = "MALHA1102" // a kind that cannot be read for another reason
	CodeVersion   = "MALHA1103" // a kind that is served, in no version that Malha knows
	CodeNotRoot   = "MALHA1104" // a policy in istio-system that is not the mesh's
)

// result returns what changed since the last Result; nil: nothing that can be said yet.
func (s *Source) result(w *watchers) *Result {
	trouble := s.problems(w)
	ready, all := w.settled()
	st := &s.state
	st.mu.Lock()
	if !ready && !st.begun {
		st.mu.Unlock()
		return nil
	}
	if !st.begun || st.config {
		st.foreign = findForeign(st.read())
		w.name(st)
		if _, all = w.settled(); !all && !st.begun {
			st.mu.Unlock()
			return nil
		}
	}
	if st.begun && (!st.config || !all) {
		defer st.mu.Unlock()
		if d := st.delta(); d != nil {
			return &Result{Delta: *d}
		}
		return nil
	}
	objects, ds := st.copied()
	theirs := st.foreign
	st.begun, st.config = true, false
	st.delta() // what it says is part of the whole
	st.mu.Unlock()

	for _, d := range trouble {
		if d.Code != CodeUnread { // it passes, and there would be no Result to say so
			ds = append(ds, d)
		}
	}
	cfg, found := config.Translate(objects)
	found = theirs.forget(objects, found)
	ds = append(append(ds, found...), config.Unguarded(objects, found)...)
	out := &Result{Config: cfg, Objects: objects}

	st.mu.Lock()
	defer st.mu.Unlock()
	// Groups depend on Services: on their selectors, and their families of addresses.
	clear(st.groups)
	for _, name := range sortedNames(st.slices) {
		if g, ok := st.group(st.slices[name]); ok {
			st.groups[name] = g
			cfg.Endpoints = append(cfg.Endpoints, g)
		}
		ds = append(ds, st.slices[name].diagnostics...)
	}
	for _, name := range sortedNames(st.made) {
		r := st.made[name]
		cfg.Workloads = append(cfg.Workloads, r.workload)
		if r.instance != nil {
			out.Instances = append(out.Instances, *r.instance)
		}
	}
	for i := range cfg.Services {
		v := &cfg.Services[i]
		if have := st.services[v.Name]; have != nil && v.Origin.Kind == "Service" {
			for _, a := range have.also {
				if !slices.Contains(v.Addresses, a) {
					v.Addresses = append(slices.Clip(v.Addresses), a)
				}
			}
		}
	}
	ds = append(ds, s.roots(cfg)...)
	out.Gateways = st.gateways(cfg)
	out.Diagnostics = tidy(ds)
	return out
}

// Diagnostics returns what is wrong between the mesh and the API server itself at the moment: also before there is a first Result,
// and also what passes and is therefore in none.
func (s *Source) Diagnostics() []model.Diagnostic {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return s.state.trouble
}

// read goes through the objects that could be read, in no order. mu is held.
func (st *state) read() iter.Seq[*config.Object] {
	return func(yield func(*config.Object) bool) {
		for _, k := range st.objects {
			if k.object.Node != nil && !yield(&k.object) {
				return
			}
		}
	}
}

// copied returns every object, in order, and why others could not be read. mu is held.
func (st *state) copied() ([]config.Object, []model.Diagnostic) {
	keys := make([]config.Key, 0, len(st.objects))
	for k := range st.objects {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b config.Key) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind), a.Name.Compare(b.Name))
	})
	objects := make([]config.Object, 0, len(keys))
	var ds []model.Diagnostic
	for _, k := range keys {
		v := st.objects[k]
		ds = append(ds, v.diagnostics...)
		if v.object.Node != nil {
			objects = append(objects, v.object)
		}
	}
	return objects, ds
}

// problems returns what is wrong with reading, and keeps it for Diagnostics.
func (s *Source) problems(w *watchers) []model.Diagnostic {
	var out []model.Diagnostic
	if w.kinds != nil {
		out = append(out, w.kinds.diagnostics...)
	}
	for _, x := range w.running {
		x.mu.Lock()
		err := x.err
		x.mu.Unlock()
		if err != nil {
			out = append(out, x.diagnostic(err))
		}
	}
	slices.SortFunc(out, func(a, b model.Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	s.state.touch(func(st *state) { st.trouble = out })
	return out
}

// diagnostic says why something cannot be read, and what to do.
func (x *watcher) diagnostic(err error) model.Diagnostic {
	d := model.Diagnostic{Severity: model.Error, Origin: ident.Origin{File: manifest.Kubernetes}}
	kind, group, _ := strings.Cut(x.plural, ".")
	switch {
	case apierrors.IsForbidden(err) && x.name != "":
		namespace := strings.SplitN(x.key, "/", 3)[1]
		d.Code, d.Message = CodeForbidden, "the control plane may not read "+x.what+", which another object names"
		d.Hint = "in namespace " + namespace + " create a Role with verbs get, list and watch on " + kind + " with resourceNames [" + x.name + "], and bind it to the control plane's service account"
	case apierrors.IsForbidden(err):
		d.Code, d.Message = CodeForbidden, "the control plane may not read "+x.what+": "
		switch {
		case x.loss != "":
			d.Severity = model.Warning
			d.Message += x.loss
		case x.required:
			d.Message += "no proxy gets a plan"
		default:
			d.Message += "nothing of it is in force"
		}
		d.Hint = "give its ClusterRole the verbs get, list and watch on " + kind + ` of apiGroup "` + group + `" (malha install does)`
	default:
		d.Code, d.Message = CodeUnread, "cannot read "+x.what+": what was read before stays in force"
		d.Hint = "is the API server well? It says: " + err.Error()
	}
	return d
}

// roots makes policies of the root namespaces those of the mesh, and takes out those of ident.RootNamespace when that is none:
// they were written for another mesh.
func (s *Source) roots(cfg *model.Config) []model.Diagnostic {
	var ds []model.Diagnostic
	foreign := !slices.Contains(s.o.Roots, ident.RootNamespace)
	stays := func(m *model.Meta) bool {
		switch {
		case slices.Contains(s.o.Roots, m.Name.Namespace):
			m.Name.Namespace = ident.RootNamespace
		case foreign && m.Name.Namespace == ident.RootNamespace:
			ds = append(ds, model.Diagnostic{
				Code: CodeNotRoot, Severity: model.Info, Origin: m.Origin,
				Message: ident.RootNamespace + " is not a root namespace of this mesh: the object is not in force",
				Hint:    "write it in " + strings.Join(s.o.Roots, " or ") + ", or install with --adopt istio",
			})
			return false
		}
		return true
	}
	cfg.PeerAuth = filter(cfg.PeerAuth, func(v *model.PeerAuth) bool { return stays(&v.Meta) })
	cfg.Policies = filter(cfg.Policies, func(v *model.AuthzPolicy) bool { return stays(&v.Meta) })
	cfg.Traffic = filter(cfg.Traffic, func(v *model.DestinationPolicy) bool { return stays(&v.Meta) })
	cfg.Sidecars = filter(cfg.Sidecars, func(v *model.SidecarPolicy) bool { return stays(&v.Meta) })
	cfg.Proxies = filter(cfg.Proxies, func(v *model.ProxyConfig) bool { return stays(&v.Meta) })
	return ds
}

// filter keeps those that stay, which may be changed by being asked.
func filter[T any](list []T, stays func(*T) bool) []T {
	n := 0
	for i := range list {
		if stays(&list[i]) {
			list[n] = list[i]
			n++
		}
	}
	return list[:n]
}

// tidy drops what is only of interest on one machine: a cluster acts on its own objects itself.
func tidy(ds []model.Diagnostic) []model.Diagnostic {
	ds = slices.DeleteFunc(ds, func(d model.Diagnostic) bool {
		switch d.Origin.Kind {
		case "Service", "Namespace", "Secret", "ConfigMap":
			return d.Code == manifest.CodeIgnoredField || d.Code == manifest.CodeIgnoredKind
		case "Gateway": // app/kube puts them on what it makes
			return d.Code == manifest.CodeIgnoredField && strings.HasPrefix(d.Path, "spec.infrastructure.annotations")
		}
		return false
	})
	var r manifest.Report
	r.Add(ds...)
	return r.Diagnostics()
}
