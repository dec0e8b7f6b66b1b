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

// complete checks the spec of an object against the CRD of kind, and fills in its defaults.
func complete(kind string) func(*manifest.Object, []byte, *manifest.Report) []byte {
	return func(o *manifest.Object, spec []byte, r *manifest.Report) []byte {
		var value any
		if err := json.Unmarshal(spec, &value); err != nil {
			internal(o, r, err)
			return nil
		}
		s := schemaOf(kind)
		value = s.Fill(value)
		s.Check(o.Spec(), value, r)
		filled, err := json.Marshal(value)
		if err != nil {
			internal(o, r, err)
			return nil
		}
		return filled
	}
}

// decode reads the spec of an object, which complete has checked.
func decode(o *manifest.Object, spec []byte, v any, r *manifest.Report) bool {
	if err := json.Unmarshal(spec, v); err != nil {
		return internal(o, r, err)
	}
	return true
}

func internal(o *manifest.Object, r *manifest.Report, err error) bool {
	r.Error(manifest.CodeInternal, o.Spec(), "please report this", "cannot decode the spec: %v", err)
	return false
}
