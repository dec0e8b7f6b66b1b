package config

import (
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// Check reports what is wrong with one object for itself. What it refers to is not looked at.
func Check(o *Object) []model.Diagnostic {
	t, report := newTable(), &manifest.Report{}
	kind := t.find(o, report)
	if kind == nil {
		return report.Diagnostics()
	}
	all, _ := report.Len()
	spec, ok := kind.Check(o, report)
	found, _ := report.Len()
	if spec != nil {
		t.perform(kind, o, spec, report)
	}
	if !ok {
		report.Besides(all, found)
	}
	return report.Diagnostics()
}
