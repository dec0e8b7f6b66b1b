// Package core translates Kubernetes' own kinds into the model: Service, Namespace, Secret, EndpointSlice and Endpoints,
// Ingress and IngressClass.
//
// It is pure: one checked object in, model values out, mistakes into the manifest.Report. What needs several objects (an
// Ingress and its class, a Service and its endpoints) is kept until Finish.
package core

import (
	"encoding/json"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// dialect is what the objects of one configuration have to tell each other.
type dialect struct {
	bare      []*manifest.Object // Services with neither selector nor name
	ingresses []ingressObject
	classes   map[string]ingressClass
}

// New returns the dialect for one configuration.
func New() manifest.Dialect {
	d := &dialect{classes: map[string]ingressClass{}}
	return manifest.Dialect{
		Kinds: []manifest.Kind{
			{Kind: "Service", Versions: []string{"v1"}, Type: serviceType, Fields: serviceFields, Translate: d.service},
			{Kind: "Namespace", Versions: []string{"v1"}, Type: namespaceType, Fields: namespaceFields, Translate: namespace},
			{Kind: "Secret", Versions: []string{"v1"}, Type: secretType, Fields: secretFields, Bare: true, Translate: secret},
			{Kind: "Endpoints", Versions: []string{"v1"}, Type: endpointsType, Fields: endpointsFields, Bare: true, Translate: endpoints},
			{Group: "discovery.k8s.io", Kind: "EndpointSlice", Versions: []string{"v1", "v1beta1"}, Type: sliceType, Fields: sliceFields, Bare: true, Translate: slice},
			{Group: networkingGroup, Kind: "Ingress", Versions: []string{"v1"}, Type: ingressType, Fields: ingressFields, Translate: d.ingress},
			{Group: networkingGroup, Kind: "IngressClass", Versions: []string{"v1"}, Type: ingressClassType, Fields: ingressClassFields, Translate: d.ingressClass},
		},
		Annotate: annotateEntry,
		Finish:   d.finish,
	}
}

// finish does what needs several objects.
func (d *dialect) finish(out *model.Config, r *manifest.Report) {
	authorities(out)
	given := map[string]bool{}
	for i := range out.Endpoints {
		given[out.Endpoints[i].Host] = true
	}
	for _, o := range d.bare {
		if !given[ident.ServiceHost(o.Name)] {
			r.Warning(manifest.CodeIgnoredField, o.Spec(), "add a selector with the labels of your workloads, or an EndpointSlice with the label kubernetes.io/service-name: "+o.Name.Name,
				"the Service has no selector and no EndpointSlice: it stands for no workload")
		}
	}
	d.translateIngresses(out, r)
}

// decode reads what the schema has checked.
func decode(o *manifest.Object, spec []byte, into any, r *manifest.Report) bool {
	if err := json.Unmarshal(spec, into); err != nil {
		r.Error(manifest.CodeInternal, o.Root(), "please report this", "cannot decode the object: %v", err)
		return false
	}
	return true
}
