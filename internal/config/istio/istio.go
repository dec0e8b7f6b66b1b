// Package istio translates Istio kinds.
package istio

import "github.com/malha-mesh/malha/internal/config/manifest"

// Kinds returns the kinds that this dialect translates.
func Kinds() []manifest.Kind { return nil }
