// Package chart embeds the Helm chart of the mesh, so that the command line installs what Helm would: chart/malha is the only
// source of manifests.
package chart

import "embed"

// Files holds the chart below "malha".
//
//go:embed all:malha
var Files embed.FS
