package kube

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// keptMetadata is what of an object's metadata means something to config.
var keptMetadata = []string{"name", "namespace", "labels", "annotations", "creationTimestamp", "generation", "uid"}

// appliedAnnotation holds the whole object once more.
const appliedAnnotation = "kubectl.kubernetes.io/last-applied-configuration"

// kept is an object that config translates.
type kept struct {
	object      manifest.Object
	diagnostics []model.Diagnostic // why it could not even be read
	names       []mention          // Secrets and ConfigMaps that it names
}

// read returns an object of the API server as config reads it, without what only the API server needs.
func read(apiVersion, kind string, obj runtime.Object) (*kept, error) {
	var content map[string]any
	if u, ok := obj.(*unstructured.Unstructured); ok {
		content = maps.Clone(u.Object)
	} else {
		var err error
		if content, err = runtime.DefaultUnstructuredConverter.ToUnstructured(obj); err != nil {
			return nil, err
		}
	}
	delete(content, "status")
	content["apiVersion"], content["kind"] = apiVersion, kind
	if m, ok := content["metadata"].(map[string]any); ok {
		lean := make(map[string]any, len(keptMetadata))
		for _, k := range keptMetadata {
			if v, ok := m[k]; ok && v != nil {
				lean[k] = v
			}
		}
		if a, ok := lean["annotations"].(map[string]any); ok {
			a = maps.Clone(a)
			delete(a, appliedAnnotation)
			lean["annotations"] = a
		}
		content["metadata"] = lean
	}
	o, ds := manifest.FromValue(manifest.Kubernetes, content)
	return &kept{object: o, diagnostics: ds, names: mentions(kind, content)}, nil
}

// same reports whether two versions of an object say the same to config.
func (k *kept) same(o *kept) bool {
	return slices.Equal(k.diagnostics, o.diagnostics) && k.object.Same(&o.object)
}

func nameOf(o metav1.Object) ident.Name {
	return ident.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
}
