// Package smi translates the kinds of the Service Mesh Interface into the model: TrafficSplit (split.smi-spec.io,
// v1alpha1 to v1alpha4).
//
// It is pure: one checked object in, model values out, mistakes into the manifest.Report.
package smi

import (
	"encoding/json"
	"reflect"
	"sync"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Kinds returns the kinds that this dialect translates.
func Kinds() []manifest.Kind {
	return []manifest.Kind{{
		Group: "split.smi-spec.io", Kind: "TrafficSplit", Versions: []string{"v1alpha4", "v1alpha3", "v1alpha2", "v1alpha1"},
		Type: splitType, Translate: split,
		Fields: manifest.Join(
			manifest.Work("", "service", "backends"),
			manifest.Refuse("split all requests, or use a VirtualService with match", "matches"),
		),
	}}
}

var splitType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[splitSpec](), nil) })

type splitSpec struct {
	Service  string    `json:"service"` // the Service that clients call: a name, or a full host
	Backends []backend `json:"backends"`
	Matches  any       `json:"matches"`
}

type backend struct {
	Service string         `json:"service"`
	Weight  manifest.Milli `json:"weight"` // v1alpha1: a Quantity; later a whole number; relative in all of them
}

func split(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	at := o.Spec()
	var in splitSpec
	if err := json.Unmarshal(spec, &in); err != nil {
		r.Error(manifest.CodeInternal, at, "please report this", "cannot decode the spec: %v", err)
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
	out.Splits = append(out.Splits, s)
}
