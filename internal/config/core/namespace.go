package core

import (
	"reflect"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

var namespaceType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[corev1.NamespaceSpec](), nil) })

var namespaceFields = manifest.Ignore("a namespace exists by being named, and goes with its last object", "finalizers")

func namespace(o *manifest.Object, _ []byte, out *model.Config, r *manifest.Report) {
	if !manifest.IsDNSLabel(o.Name.Name) {
		r.Error(manifest.CodeMetadata, o.Root().Field("metadata").Field("name"), "lower-case letters, digits and '-', at most 63 of them", "%q cannot be the name of a Namespace", o.Name.Name)
	}
	out.Namespaces = append(out.Namespaces, model.Namespace{Meta: o.Meta()})
}
