package local

import (
	"slices"

	"github.com/malha-mesh/malha/internal/config/manifest"
)

// AnnotationServiceType chooses, on a Gateway of the Gateway API, the type of the Service that it gets on a cluster.
const AnnotationServiceType = Group + "/service-type"

// serviceTypes are its values.
var serviceTypes = []string{"LoadBalancer", "NodePort", "ClusterIP"}

// serviceType checks the annotation; app/kube acts on it.
func serviceType(o *manifest.Object, r *manifest.Report) {
	value, ok := o.Annotations[AnnotationServiceType]
	if !ok {
		return
	}
	at := o.Root().Field("metadata").Field("annotations").Key(AnnotationServiceType)
	switch {
	case o.Kind != "Gateway" || o.Group() != "gateway.networking.k8s.io":
		r.Error(manifest.CodeAnnotation, at, "put it on a Gateway of gateway.networking.k8s.io", "%s means nothing on a %s", AnnotationServiceType, o.Kind)
	case !slices.Contains(serviceTypes, value):
		r.Error(manifest.CodeAnnotation, at, manifest.DidYouMean(value, serviceTypes), "%q is no type of a gateway's Service", value)
	}
}
