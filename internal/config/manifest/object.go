// Package manifest reads Kubernetes-shaped YAML and JSON: bytes in, objects with the line of every field out, and
// for each object a strict check of its fields against a schema and against what Malha can act on.
//
// It is pure. It knows no kind: the dialects (config/core, config/istio, config/linkerd, config/smi, config/local)
// describe theirs with a Kind, and config picks the right one. Everything that is wrong becomes a model.Diagnostic
// in a Report, all at once, each with its own line; nothing here returns at the first mistake.
package manifest

import (
	"path"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Object is one object as it was written.
type Object struct {
	APIVersion  string // "networking.istio.io/v1"
	Kind        string
	Name        ident.Name // ident.DefaultNamespace when the object names none
	Labels      map[string]string
	Annotations map[string]string
	Created     time.Time    // metadata.creationTimestamp; zero in files
	Generation  int64        // metadata.generation, which statuses say they are of; 0 in files
	UID         string       // metadata.uid: an object that was made again under its name is another one; "" in files
	Origin      ident.Origin // the object, its file and first line
	// Node is the object's mapping. Aliases and merge keys are already resolved; a node keeps the line where it was written.
	Node *yaml.Node
}

// Group returns the API group: "" for core kinds.
func (o *Object) Group() string {
	group, _, ok := strings.Cut(o.APIVersion, "/")
	if !ok {
		return ""
	}
	return group
}

// Version returns the API version without its group.
func (o *Object) Version() string {
	_, version, ok := strings.Cut(o.APIVersion, "/")
	if !ok {
		return o.APIVersion
	}
	return version
}

// Meta returns what the model keeps of every object.
func (o *Object) Meta() model.Meta {
	return model.Meta{Name: o.Name, Origin: o.Origin, Labels: o.Labels, Created: o.Created}
}

// Root returns a cursor at the object itself.
func (o *Object) Root() Cursor {
	c := Cursor{object: o, node: o.Node, line: o.Origin.Line}
	if o.Node != nil {
		c.line = o.Node.Line
	}
	return c
}

// Spec returns a cursor at the object's spec.
func (o *Object) Spec() Cursor { return o.Root().Field("spec") }

// FileSecret names the model.Secret that files hold: a certificate and its key, or authorities alone. Paths are relative to the
// file of the object, as that file's path is; config/file reads them.
func FileSecret(o *Object, paths ...string) string {
	var b strings.Builder
	b.WriteString(FileSecretPrefix)
	for i, p := range paths {
		if i > 0 {
			b.WriteByte(',')
		}
		if !path.IsAbs(p) {
			p = path.Join(path.Dir(o.Origin.File), p)
		}
		b.WriteString(p)
	}
	return b.String()
}

// FileSecretPrefix begins the names that FileSecret makes. No object's name holds a colon.
const FileSecretPrefix = "file:"
