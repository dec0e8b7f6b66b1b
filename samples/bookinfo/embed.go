// Package bookinfo is the bundled sample: the manifests of a small bookshop. Its programs are the folders beside.
package bookinfo

import "embed"

// Manifests is the folder that `malha up` runs when it is given none: mesh/*.yaml.
//
//go:embed mesh/*.yaml
var Manifests embed.FS
