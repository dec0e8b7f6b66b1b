package kube

import (
	"cmp"
	"iter"
	"slices"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/core"
	gatewayapi "github.com/malha-mesh/malha/internal/config/gateway"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// foreign are the objects of the Gateway API and the Ingresses that are another controller's. A cluster may have several, and what
// Malha can't do with theirs is no mistake: it is not told. An object whose controller isn't known is not among them.
type foreign map[config.Key]bool

// The parts of objects that say whose they are.
type (
	gatewayClassSpec struct {
		ControllerName string `yaml:"controllerName"`
	}
	ingressClassSpec struct {
		Controller string `yaml:"controller"`
	}
	parentRef struct {
		Group, Kind, Namespace, Name string
	}
	chosenSpec struct {
		GatewayClassName string      `yaml:"gatewayClassName"`
		IngressClassName string      `yaml:"ingressClassName"`
		ParentRef        *parentRef  `yaml:"parentRef"`
		ParentRefs       []parentRef `yaml:"parentRefs"`
	}
)

const (
	gatewayGroup = "gateway.networking.k8s.io"
	ingressGroup = "networking.k8s.io"
)

// findForeign looks at classes, then at Gateways and Ingresses, then at ListenerSets, then at routes: each depends on those before.
func findForeign(objects iter.Seq[*config.Object]) foreign {
	byGroup := map[string][]*config.Object{gatewayGroup: nil, ingressGroup: nil}
	for o := range objects {
		if all, asked := byGroup[o.Group()]; asked {
			byGroup[o.Group()] = append(all, o)
		}
	}
	out := foreign{}
	each := func(group string, kinds []string, f func(o *config.Object) bool) {
		for _, o := range byGroup[group] {
			if slices.Contains(kinds, o.Kind) && f(o) {
				out[config.KeyOf(o)] = true
			}
		}
	}
	theirGateways, theirIngresses := map[string]bool{}, map[string]bool{} // by class
	each(gatewayGroup, []string{"GatewayClass"}, func(o *config.Object) bool {
		var in gatewayClassSpec
		theirGateways[o.Name.Name] = o.Spec().Decode(&in) == nil && in.ControllerName != "" && in.ControllerName != gatewayapi.ControllerName
		return theirGateways[o.Name.Name]
	})
	each(ingressGroup, []string{"IngressClass"}, func(o *config.Object) bool {
		var in ingressClassSpec
		theirIngresses[o.Name.Name] = o.Spec().Decode(&in) == nil && in.Controller != "" && !core.OwnIngressController(in.Controller)
		return theirIngresses[o.Name.Name]
	})
	each(ingressGroup, []string{"Ingress"}, func(o *config.Object) bool {
		var in chosenSpec
		if o.Spec().Decode(&in) != nil {
			return false
		}
		name := in.IngressClassName
		if a, ok := o.Annotations[core.IngressClassAnnotation]; ok {
			name = a
		}
		if theirs, known := theirIngresses[name]; known {
			return theirs
		}
		return name != "" && !core.OwnIngressClass(name)
	})
	each(gatewayGroup, []string{"Gateway"}, func(o *config.Object) bool {
		var in chosenSpec
		return o.Spec().Decode(&in) == nil && theirGateways[in.GatewayClassName]
	})
	theirs := func(o *config.Object, p *parentRef) bool {
		key := config.Key{Group: gatewayGroup, Kind: "Gateway", Name: ident.Name{Namespace: o.Name.Namespace, Name: p.Name}}
		// A Group that is written as "" is the core group, whose kinds are never in out.
		key.Group = cmp.Or(p.Group, key.Group)
		key.Kind = cmp.Or(p.Kind, key.Kind)
		key.Name.Namespace = cmp.Or(p.Namespace, key.Name.Namespace)
		return out[key]
	}
	each(gatewayGroup, []string{"ListenerSet"}, func(o *config.Object) bool {
		var in chosenSpec
		return o.Spec().Decode(&in) == nil && in.ParentRef != nil && theirs(o, in.ParentRef)
	})
	each(gatewayGroup, []string{"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"}, func(o *config.Object) bool {
		var in chosenSpec
		return o.Spec().Decode(&in) == nil && len(in.ParentRefs) > 0 &&
			!slices.ContainsFunc(in.ParentRefs, func(p parentRef) bool { return !theirs(o, &p) })
	})
	return out
}

// forget takes out what was found in the objects of others.
func (f foreign) forget(objects []config.Object, found []model.Diagnostic) []model.Diagnostic {
	if len(f) == 0 {
		return found
	}
	type place struct{ kind, namespace, name string }
	theirs, ours := map[place]bool{}, map[place]bool{}
	for i := range objects {
		o := &objects[i]
		at := place{o.Origin.Kind, o.Origin.Namespace, o.Origin.Name}
		if f[config.KeyOf(o)] {
			theirs[at] = true
		} else {
			ours[at] = true // a Gateway of Istio may have the same name
		}
	}
	return slices.DeleteFunc(found, func(d model.Diagnostic) bool {
		at := place{d.Origin.Kind, d.Origin.Namespace, d.Origin.Name}
		return theirs[at] && !ours[at]
	})
}
