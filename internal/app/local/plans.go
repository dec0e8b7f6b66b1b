package local

import (
	"net/http"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// plans sends the plans in force, of all proxies or of those that are named.
func (m *Mesh) plans(w http.ResponseWriter, r *http.Request) {
	nodes := r.URL.Query()["node"]
	var names []ident.Name
	for _, word := range nodes {
		n, err := ident.ParseName(word, ident.DefaultNamespace)
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		names = append(names, n)
	}
	if len(nodes) == 0 {
		m.do(func() { names = m.names() })
	}
	out := []*plan.Plan{}
	for _, n := range names {
		p, ok := m.plane.Plan(n)
		switch {
		case ok:
			out = append(out, p.Redacted())
		case len(nodes) > 0:
			refuse(w, http.StatusNotFound, "no proxy "+n.String()+" in the mesh; see `malha status`")
			return
		}
	}
	answer(w, out)
}
