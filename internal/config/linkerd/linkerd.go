// Package linkerd translates Linkerd's kinds into the model: ServiceProfile (linkerd.io), Server, HTTPLocalRateLimitPolicy and
// EgressNetwork (policy.linkerd.io), and its annotations on Services, routes, namespaces and workloads.
//
// It is pure: one checked object in, model values out, mistakes into the manifest.Report. The meaning is that of the
// Linkerd reference; where Linkerd's own parts disagree, the documentation is followed and a Warning says so. What needs several
// objects (a rate limit and its Server, an annotation of a namespace) is kept until Finish.
package linkerd

import (
	"encoding/json"
	"slices"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

const policyGroup = "policy.linkerd.io"

// dialect is what the objects of one configuration have to tell each other.
type dialect struct {
	namespaces map[string]portSet // config.linkerd.io/opaque-ports
	annotated  []*manifest.Object // Services and Workloads
	routes     []routePolicy
	profiles   map[string]portSet // opaquePorts, by host
	servers    []*server
	limits     []*limit
}

// New returns the dialect for one configuration.
func New() manifest.Dialect {
	d := &dialect{namespaces: map[string]portSet{}, profiles: map[string]portSet{}}
	return manifest.Dialect{
		Kinds: []manifest.Kind{
			{Group: "linkerd.io", Kind: "ServiceProfile", Versions: []string{"v1alpha2", "v1alpha1"}, Type: profileType, Fields: profileFields, Translate: d.profile},
			{Group: policyGroup, Kind: "Server", Versions: []string{"v1beta3", "v1beta2", "v1beta1", "v1alpha1"}, Type: serverType, Fields: serverFields, Translate: d.server},
			{Group: policyGroup, Kind: "HTTPLocalRateLimitPolicy", Versions: []string{"v1alpha1"}, Type: limitType, Fields: limitFields, Translate: d.limit},
			{Group: policyGroup, Kind: "EgressNetwork", Versions: []string{"v1alpha1"}, Type: egressType, Fields: egressFields, Translate: egress},
		},
		Annotate: d.annotate,
		Finish:   d.finish,
	}
}

func (d *dialect) finish(out *model.Config, r *manifest.Report) {
	d.opaque(out)
	d.finishServers(out, r)
	d.finishLimits(out, r)
	d.finishRoutes(out)
	profiled(out, r)
}

// decode reads what the schema has checked.
func decode(o *manifest.Object, spec []byte, into any, r *manifest.Report) bool {
	if err := json.Unmarshal(spec, into); err != nil {
		r.Error(manifest.CodeInternal, o.Root(), "please report this", "cannot decode the object: %v", err)
		return false
	}
	return true
}

// oldestFirst orders by creation, then by name, as Linkerd decides conflicts.
func oldestFirst[T any](list []T, object func(T) *manifest.Object) {
	slices.SortFunc(list, func(a, b T) int {
		x, y := object(a), object(b)
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return x.Name.Compare(y.Name)
	})
}

// accepted is the status that Linkerd's controller writes. It has no generation: the conditions of Linkerd's CRDs have no
// observedGeneration, so the API server would drop it, and the status would be written again and again.
func accepted(o *manifest.Object, ok bool, reason, message string) model.Status {
	return model.Status{Group: o.Group(), Kind: o.Kind, Name: o.Name, Conditions: []model.Condition{{Type: "Accepted", Status: ok, Reason: reason, Message: message}}}
}
