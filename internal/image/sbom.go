package image

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
)

// component is of CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json).
type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl,omitempty"`
	// Properties hold Go's own checksum of a module (go.sum), which is no hash of one file and so none of CycloneDX's hashes.
	Properties []property `json:"properties,omitempty"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// SBOM returns the bill of materials of a Go program as CycloneDX 1.6, from what the Go linker wrote into it: its modules, with their
// checksums, and the version of Go, whose standard library is linked too. It names no time and has no serial number, so that the same
// program has the same one.
func SBOM(program, version string, info *buildinfo.BuildInfo) ([]byte, error) {
	if info.Main.Path == "" {
		return nil, errors.New("the program was built without modules: nothing is known of what is in it")
	}
	mainRef := purl(info.Main.Path, version)
	parts := []component{{
		Type: "library", Ref: purl("std", strings.TrimPrefix(info.GoVersion, "go")), Name: "std", Version: strings.TrimPrefix(info.GoVersion, "go"),
		PURL: purl("std", strings.TrimPrefix(info.GoVersion, "go")),
	}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := component{Type: "library", Ref: purl(m.Path, m.Version), Name: m.Path, Version: m.Version, PURL: purl(m.Path, m.Version)}
		if m.Sum != "" {
			c.Properties = []property{{"go:sum", m.Sum}}
		}
		parts = append(parts, c)
	}
	slices.SortFunc(parts, func(a, b component) int { return strings.Compare(a.Ref, b.Ref) })
	refs := make([]string, len(parts))
	for i := range parts {
		refs[i] = parts[i].Ref
	}
	var settings []property
	for _, s := range info.Settings {
		if slices.Contains([]string{"GOOS", "GOARCH", "GOAMD64", "GOARM64", "CGO_ENABLED", "-trimpath"}, s.Key) {
			settings = append(settings, property{"go:build:" + s.Key, s.Value})
		}
	}
	return json.MarshalIndent(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
		"metadata":     map[string]any{"component": component{Type: "application", Ref: mainRef + "#" + program, Name: program, Version: version, PURL: mainRef, Properties: settings}},
		"components":   parts,
		"dependencies": []map[string]any{{"ref": mainRef + "#" + program, "dependsOn": refs}},
	}, "", " ")
}

// purl is https://github.com/package-url/purl-spec/blob/main/types-doc/golang-definition.md.
func purl(module, version string) string {
	return "pkg:golang/" + strings.ToLower(module) + "@" + url.QueryEscape(version)
}
