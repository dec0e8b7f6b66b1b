// Package smi translates the kinds of the Service Mesh Interface into the model: TrafficSplit (split.smi-spec.io, v1alpha1 to
// v1alpha4), HTTPRouteGroup and TCPRoute (specs.smi-spec.io, v1alpha1 to v1alpha4).
//
// It is pure: one checked object in, model values out, mistakes into the manifest.Report. A TrafficSplit with matches waits for
// its HTTPRouteGroups until Finish.
package smi

import (
	"encoding/json"
	"reflect"
	"slices"
	"sync"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

const (
	splitGroup = "split.smi-spec.io"
	specsGroup = "specs.smi-spec.io"
	// annotationSkip keeps Linkerd's SMI extension from reading a TrafficSplit.
	annotationSkip = "smi.linkerd.io/skip"
)

// dialect is what the objects of one configuration have to tell each other.
type dialect struct {
	splits []*pending
	groups map[ident.Name]*group
}

// pending is a TrafficSplit that waits for its matches.
type pending struct {
	object *manifest.Object
	split  model.Split
	refs   []reference
}

type reference struct {
	APIGroup string `json:"apiGroup"`
	Kind     string `json:"kind"`
	Name     string `json:"name"`
}

// New returns the dialect for one configuration.
func New() manifest.Dialect {
	d := &dialect{groups: map[ident.Name]*group{}}
	return manifest.Dialect{
		Kinds: []manifest.Kind{
			{
				Group: splitGroup, Kind: "TrafficSplit", Versions: []string{"v1alpha4", "v1alpha3", "v1alpha2", "v1alpha1"},
				Type: splitType, Fields: manifest.Work("", "service", "backends", "matches"), Translate: d.split,
			},
			{
				Group: specsGroup, Kind: "HTTPRouteGroup", Versions: []string{"v1alpha4", "v1alpha3"},
				Type: groupType, Fields: groupFields, Translate: d.group,
			},
			{
				Group: specsGroup, Kind: "HTTPRouteGroup", Versions: []string{"v1alpha2", "v1alpha1"}, Bare: true,
				Type: groupType, Fields: groupFields, Translate: d.group,
			},
			{
				Group: specsGroup, Kind: "TCPRoute", Versions: []string{"v1alpha4", "v1alpha3", "v1alpha2", "v1alpha1"},
				Type: tcpRouteType, Fields: manifest.Ignore(onlyTargets, "matches"), Translate: tcpRoute,
			},
		},
		Finish: d.finish,
	}
}

// onlyTargets is why a TCPRoute has no effect.
const onlyTargets = "only a TrafficTarget could refer to it, and those are not supported by Malha yet"

var tcpRouteType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[tcpRouteSpec](), nil) })

type tcpRouteSpec struct {
	Matches struct {
		Name  string `json:"name"`
		Ports []int  `json:"ports"`
	} `json:"matches"`
}

func tcpRoute(o *manifest.Object, _ []byte, _ *model.Config, r *manifest.Report) {
	r.Info(manifest.CodeSplit, o.Root(), "", "the TCPRoute has no effect: %s", onlyTargets)
}

var splitType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[splitSpec](), nil) })

type splitSpec struct {
	Service  string      `json:"service"` // the Service that clients call: a name, or a full host
	Backends []backend   `json:"backends"`
	Matches  []reference `json:"matches"` // since v1alpha3
}

type backend struct {
	Service string         `json:"service"`
	Weight  manifest.Milli `json:"weight"` // v1alpha1: a Quantity; later a whole number; relative in all of them
}

// decode reads what the schema has checked.
func decode(o *manifest.Object, spec []byte, into any, r *manifest.Report) bool {
	if err := json.Unmarshal(spec, into); err != nil {
		r.Error(manifest.CodeInternal, o.Root(), "please report this", "cannot decode the object: %v", err)
		return false
	}
	return true
}

func (d *dialect) split(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	at := o.Spec()
	var in splitSpec
	if !decode(o, spec, &in, r) {
		return
	}
	if v, ok := o.Annotations[annotationSkip]; ok && v != "false" {
		r.Info(manifest.CodeIgnoredKind, o.Root().Field("metadata").Field("annotations").Key(annotationSkip), "", "the TrafficSplit is left alone, as its annotation asks")
		return
	}
	host := func(at manifest.Cursor, name string) string {
		if name == "" {
			r.Error(manifest.CodeRequired, at, "name a Service of this namespace", "the Service is missing")
			return ""
		}
		h, err := ident.RuleHost(name, o.Name.Namespace)
		if err != nil || h[0] == '*' {
			r.Error(manifest.CodeBadHost, at, "name a Service of this namespace", "%q is not a Service", name)
		}
		return h
	}
	s := model.Split{Meta: o.Meta(), Host: host(at.Field("service"), in.Service)}
	lines := map[string]int{}
	var sum uint64
	for i, b := range in.Backends {
		here := at.Field("backends").Index(i)
		target := model.SplitBackend{Host: host(here.Field("service"), b.Service), Weight: uint32(b.Weight), Origin: here.Origin()}
		if line, twice := lines[target.Host]; twice && target.Host != "" {
			r.Error(manifest.CodeSplit, here.Field("service"), "keep one of them", "backend %s stands twice, first on line %d", b.Service, line)
		}
		lines[target.Host] = here.Line()
		switch weight := here.Field("weight"); {
		case !weight.Set():
			r.Error(manifest.CodeRequired, here, "add weight: …", "the backend has no weight")
		case o.Version() != "v1alpha1" && target.Weight%1000 != 0:
			r.Error(manifest.CodeWrongType, weight, "write a whole number, or use v1alpha1", "weights in thousandths came and went with v1alpha1")
		}
		sum += uint64(target.Weight)
		s.Backends = append(s.Backends, target)
	}
	switch {
	case len(in.Backends) == 0:
		r.Error(manifest.CodeRequired, at, "add backends: [{service: …, weight: …}]", "the TrafficSplit has no backends")
	case sum == 0:
		r.Error(manifest.CodeWeights, at.Field("backends"), "give each backend its share", "all backends have weight 0: no request could go anywhere")
	case sum > 1<<32-1:
		r.Error(manifest.CodeWeights, at.Field("backends"), "use smaller weights", "the weights are too large together")
	}
	_, before := r.Len()
	for i, m := range in.Matches {
		here := at.Field("matches").Index(i)
		switch {
		case m.Kind != "HTTPRouteGroup" || m.APIGroup != "" && m.APIGroup != specsGroup:
			r.Error(manifest.CodeSplit, here.Field("kind"), "name an HTTPRouteGroup of "+specsGroup, "requests are described by an HTTPRouteGroup, not by a %s", m.Kind)
		case m.Name == "":
			r.Error(manifest.CodeRequired, here, "add name: …", "the HTTPRouteGroup has no name")
		}
	}
	if len(in.Matches) > 0 && slices.Contains([]string{"v1alpha1", "v1alpha2"}, o.Version()) {
		r.Error(manifest.CodeSplit, at.Field("matches"), "use apiVersion: "+splitGroup+"/v1alpha4", "`matches` came with v1alpha3")
	}
	if _, after := r.Len(); len(in.Matches) > 0 && after == before {
		d.splits = append(d.splits, &pending{o, s, in.Matches})
		return
	}
	out.Splits = append(out.Splits, s)
}

// finish gives TrafficSplits their matches: a request is divided when a match of any group holds (SMI v1alpha3, "matches"). A
// group that does not exist takes the TrafficSplit out of force.
func (d *dialect) finish(out *model.Config, r *manifest.Report) {
	for _, p := range d.splits {
		ok := true
		for i, ref := range p.refs {
			at := p.object.Spec().Field("matches").Index(i)
			g := d.groups[ident.Name{Namespace: p.object.Name.Namespace, Name: ref.Name}]
			if g == nil {
				r.Error(manifest.CodeSplit, at.Field("name"), "add it, or correct the name", "there is no HTTPRouteGroup %s in namespace %s", ref.Name, p.object.Name.Namespace)
				ok = false
				continue
			}
			g.used = true
			p.split.Matches = append(p.split.Matches, g.matches...)
		}
		if ok {
			out.Splits = append(out.Splits, p.split)
		}
	}
	names := make([]ident.Name, 0, len(d.groups))
	for n := range d.groups {
		names = append(names, n)
	}
	slices.SortFunc(names, ident.Name.Compare)
	for _, n := range names {
		if g := d.groups[n]; !g.used {
			r.Info(manifest.CodeSplit, g.object.Root(), "name it in the matches of a TrafficSplit", "no TrafficSplit refers to the HTTPRouteGroup: it has no effect")
		}
	}
}
