package local

import (
	"net/http"
	"slices"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/world"
)

// Analyze looks at manifests that were read, without a mesh: at each object, and at what stands between those that can be used.
func Analyze(r *file.Result) (*config.Analysis, error) {
	a := &config.Analysis{Diagnostics: r.Diagnostics, Suppressed: config.Suppressions(r.Written)}
	cfg := r.Config
	if model.HasErrors(r.Diagnostics) {
		cfg = config.Outline(r.Written) // so that a reference to an object with errors is not one to nothing
	}
	placed, err := placement.Offline(cfg)
	if err != nil {
		return nil, err
	}
	gateways := placed.Gateways
	if len(gateways) == 0 {
		gateways = append(gateways, placement.IngressGateway()) // a Gateway that selects another is a mistake
	}
	w := world.Build(cfg, placed.Instances, gateways)
	wrong := config.Wrong(r.Written, r.Diagnostics)
	for _, d := range append(world.Check(w), world.Advise(w)...) {
		if !wrong(d) { // an object with errors is looked at as far as it can be read only: it could seem to lack something
			a.Diagnostics = append(a.Diagnostics, d)
		}
	}
	return a, nil
}

// analyze looks at the objects in force, and at what is wrong with what was offered last.
func (m *Mesh) analyze(w http.ResponseWriter, _ *http.Request) {
	var a config.Analysis
	var objects []config.Object
	var placed placement.Placement
	var secrets []model.Secret
	m.do(func() {
		objects = merge(m.objects, m.applied)
		a.Diagnostics = slices.Clone(m.diagnostics)
		placed, secrets = m.placed, m.config.Secrets
	})
	cfg, ds := config.Translate(objects)
	ds = append(ds, file.ReadSecrets(cfg, secrets)...)
	now := world.Build(cfg, placed.Instances, placed.Gateways)
	ds = append(ds, world.Check(now)...)
	ds = append(ds, world.Advise(now)...)
	for _, d := range ds {
		if !slices.Contains(a.Diagnostics, d) {
			a.Diagnostics = append(a.Diagnostics, d)
		}
	}
	a.Suppressed = config.Suppressions(objects)
	answer(w, &a)
}
