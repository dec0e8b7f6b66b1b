package linkerd_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// TestOpaquePortsOfSeveralProfiles: a profile of a client's namespace that says nothing of ports does not make those of the Service's own
// ones of requests again.
func TestOpaquePortsOfSeveralProfiles(t *testing.T) {
	const service, profile = `
apiVersion: v1
kind: Service
metadata: {name: db, namespace: data}
spec: {selector: {app: db}, ports: [{name: http-odd, port: 3306}, {name: http, port: 80}]}
---`, `
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: db.data.svc.cluster.local, namespace: NAMESPACE}
spec: SPEC
---`
	for _, namespaces := range [][2]string{{"a-client", "data"}, {"data", "z-client"}} { // objects are read by name
		text := service
		for _, ns := range namespaces {
			spec := "{routes: []}"
			if ns == "data" {
				spec = "{opaquePorts: [3306]}"
			}
			text += strings.NewReplacer("NAMESPACE", ns, "SPEC", spec).Replace(profile)
		}
		objects, ds := config.Parse("db.yaml", []byte(text))
		cfg, more := config.Translate(objects)
		if ds = append(ds, more...); model.HasErrors(ds) || len(cfg.Profiles) != 2 {
			t.Fatalf("%d profiles, %v", len(cfg.Profiles), ds)
		}
		for _, p := range cfg.Services[0].Ports {
			if want := map[int]ident.Protocol{3306: ident.TCP, 80: ident.HTTP}[p.Port]; p.Protocol != want {
				t.Errorf("profiles in %v: port %d is %s, want %s", namespaces, p.Port, p.Protocol, want)
			}
		}
	}
}
