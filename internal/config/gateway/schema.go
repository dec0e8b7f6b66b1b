package gateway

import (
	"embed"
	"encoding/json"
	"slices"
	"sync"

	"github.com/malha-mesh/malha/internal/config/crd"
	"github.com/malha-mesh/malha/internal/config/manifest"
)

// schemaKinds are the kinds whose CRDs are in schema/.
var schemaKinds = []string{
	"BackendTLSPolicy", "GRPCRoute", "Gateway", "GatewayClass", "HTTPRoute", "ListenerSet", "ReferenceGrant", "TCPRoute", "TLSRoute",
}

//go:embed schema/*.json
var schemaFiles embed.FS

func schemaText(kind string) []byte {
	data, err := schemaFiles.ReadFile("schema/" + kind + ".json")
	if err != nil {
		panic("gateway: no schema of " + kind) // a defect that every test of the kind finds
	}
	return data
}

// schemaOf returns the schema of the spec of a kind, parsed once.
var schemaOf = func() func(kind string) *crd.Schema {
	made := make([]func() *crd.Schema, len(schemaKinds))
	for i, kind := range schemaKinds {
		made[i] = sync.OnceValue(func() *crd.Schema {
			s, err := crd.Parse(schemaText(kind))
			if err != nil {
				panic("gateway: " + err.Error()) // TestSchemasCompile finds it
			}
			return s
		})
	}
	return func(kind string) *crd.Schema { return made[slices.Index(schemaKinds, kind)]() }
}()

// decode checks the spec of an object against the CRD of kind and reads it, with its defaults, into v. It reports all that
// is wrong.
func decode(kind string, o *manifest.Object, spec []byte, v any, r *manifest.Report) bool {
	var value any
	if err := json.Unmarshal(spec, &value); err != nil {
		return internal(o, r, err)
	}
	s := schemaOf(kind)
	value = s.Fill(value)
	if !s.Check(o.Spec(), value, r) {
		return false
	}
	filled, err := json.Marshal(value)
	if err != nil {
		return internal(o, r, err)
	}
	if err := json.Unmarshal(filled, v); err != nil {
		return internal(o, r, err)
	}
	return true
}

func internal(o *manifest.Object, r *manifest.Report, err error) bool {
	r.Error(manifest.CodeInternal, o.Spec(), "please report this", "cannot decode the spec: %v", err)
	return false
}
