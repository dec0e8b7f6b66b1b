package core

import (
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// annotateEntry reads the annotations and labels of a Service where a ServiceEntry has them: which endpoints are preferred, how
// they are balanced and asked, and what keeps a client on one of them. Who sees it is said by its spec.
func annotateEntry(o *manifest.Object, own *model.Config, r *manifest.Report) {
	if o.Kind != "ServiceEntry" || len(own.Services) == 0 {
		return
	}
	var s model.Service // of every host
	serviceAnnotations(o, &s, r)
	for i := range own.Services {
		t := &own.Services[i]
		t.Near, t.Session, t.Balancer, t.Check = s.Near, s.Session, s.Balancer, s.Check
	}
}
