// Package manifests reads the objects of golden archives, for the tests of the rooms that translate them.
//
// It is used by tests only and starts no goroutine.
package manifests

import (
	"strings"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
)

// Outputs are what a case produces, by name (golden.Run).
type Outputs map[string][]byte

// Put adds an output; an empty one is none.
func (o Outputs) Put(name, text string) {
	if text != "" {
		o[name] = []byte(text)
	}
}

// Translate makes one configuration of the objects of a case. The outputs have what was said about them, a line for each diagnostic.
func Translate(in *golden.Archive) (*model.Config, Outputs) {
	var objs []config.Object
	var report manifest.Report
	for _, f := range in.Inputs() {
		found, ds := config.Parse(f.Name, f.Data)
		objs = append(objs, found...)
		report.Add(ds...)
	}
	cfg, ds := config.Translate(objs)
	report.Add(ds...)
	var lines strings.Builder
	for _, d := range report.Diagnostics() {
		lines.WriteString(d.String() + "\n")
	}
	out := Outputs{}
	out.Put("diagnostics", lines.String())
	return cfg, out
}
