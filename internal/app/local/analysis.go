package local

import (
	"net/http"
	"slices"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/world"
)

// Analysis is all that is wrong or suspicious in the configuration of a running mesh.
type Analysis struct {
	Diagnostics []model.Diagnostic `json:"diagnostics"`
	Suppressed  []Suppression      `json:"suppressed,omitempty"`
}

// Suppression is the codes that an object's annotations want nothing to be said of.
type Suppression struct {
	Kind  string     `json:"kind"`
	Name  ident.Name `json:"name"`
	Codes []string   `json:"codes"` // "*": all
}

// Suppressions returns what the annotations of objects suppress.
func Suppressions(objects []config.Object) []Suppression {
	var out []Suppression
	for i := range objects {
		if codes := config.Suppressed(&objects[i]); len(codes) > 0 {
			out = append(out, Suppression{Kind: objects[i].Kind, Name: objects[i].Name, Codes: codes})
		}
	}
	return out
}

// analyze looks at the objects in force, and at what was offered last when that was refused.
func (m *Mesh) analyze(w http.ResponseWriter, _ *http.Request) {
	var a Analysis
	var objects []config.Object
	var placed placement.Placement
	m.do(func() {
		objects = merge(m.objects, m.applied)
		a.Diagnostics = slices.Clone(m.diagnostics)
		placed = m.placed
	})
	cfg, ds := config.Translate(objects)
	ds = append(ds, file.ReadSecrets(cfg)...)
	now := world.Build(cfg, placed.Instances, placed.Gateways)
	ds = append(ds, world.Check(now)...)
	ds = append(ds, world.Advise(now)...)
	for _, d := range ds {
		if !slices.Contains(a.Diagnostics, d) {
			a.Diagnostics = append(a.Diagnostics, d)
		}
	}
	a.Suppressed = Suppressions(objects)
	answer(w, &a)
}
