package file

import (
	"path/filepath"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// Good is what was good at one moment: what stands in for what is not, later.
type Good struct {
	Objects []config.Object // nil: there was no moment before
	Secrets []model.Secret  // that were read from files
}

// Candidate is a configuration that can be in force.
type Candidate struct {
	Objects []config.Object // each as it is, or in its version before
	Config  *model.Config   // of Objects, with the files that they name
}

// Settle finds what of objects can be in force after before (config.Settle), with the files that they name. fits says what does not
// fit the rest of the world in a configuration; nil: everything does. known is what is wrong with objects already.
//
// It returns everything that is wrong, each once, by place. settled is false when an error remains that belongs to no object: then
// nothing can change.
func Settle(objects []config.Object, before Good, known []model.Diagnostic, fits func(*model.Config) []model.Diagnostic) (c Candidate, found []model.Diagnostic, settled bool) {
	c, found, _, settled = fit(objects, before, known, fits)
	return c, found, settled
}

// fit is Settle; it returns the files that it read too.
func fit(objects []config.Object, before Good, known []model.Diagnostic, fits func(*model.Config) []model.Diagnostic) (c Candidate, found []model.Diagnostic, read []content, settled bool) {
	var unread []model.Diagnostic // of the configuration that was tried last
	c.Objects, found, settled = config.Settle(objects, before.Objects, func(objs []config.Object) (broken, loose []model.Diagnostic) {
		c.Config, broken = config.Translate(objs)
		unread, read = readSecrets(c.Config, before.Secrets)
		unread = append(unread, absolute(c.Config)...)
		if fits != nil && !model.HasErrors(broken) {
			loose = fits(c.Config)
		}
		return broken, loose
	})
	var report manifest.Report
	said := map[model.Diagnostic]bool{} // who read the objects may have looked at their files already
	for _, list := range [][]model.Diagnostic{known, found, unread} {
		for _, d := range list {
			if !said[d] {
				said[d] = true
				report.Add(d)
			}
		}
	}
	return c, report.Diagnostics(), read, settled
}

// absolute makes the folders in which programs run absolute: they are relative to the file that names them.
func absolute(cfg *model.Config) (ds []model.Diagnostic) {
	for i := range cfg.Workloads {
		run := cfg.Workloads[i].Run
		if run == nil {
			continue
		}
		dir, err := filepath.Abs(run.Dir)
		if err != nil {
			ds = append(ds, unreadable(run.Dir, err))
			continue
		}
		run.Dir = dir
	}
	return ds
}
