package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Who points the local mesh at manifests of a cluster is told at once what is missing, and the Workload that it gets to see is one that the mesh takes.
func TestManifestsOfACluster(t *testing.T) {
	read := func(text string) *file.Result {
		t.Helper()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "bookinfo.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file.New(file.Options{Dir: dir}).Load()
	}
	r := read(`apiVersion: v1
kind: Service
metadata: {name: details, labels: {app: details, service: details}}
spec:
  ports:
  - port: 9080
    name: http
  selector: {app: details}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: bookinfo-details}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: details-v1, labels: {app: details, version: v1}}
spec:
  replicas: 1
  selector: {matchLabels: {app: details, version: v1}}
  template:
    metadata: {labels: {app: details, version: v1, "odd": "yes"}}
    spec:
      serviceAccountName: bookinfo-details
      containers:
      - name: details
        image: docker.io/istio/examples-bookinfo-details-v1:1.20.2
        ports: [{containerPort: 9080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ratings-v1}
---
`)
	said := programless("bookinfo.yaml", r.Objects).Error()
	for _, want := range []string{"no Workload in bookinfo.yaml", "Deployment details-v1, StatefulSet ratings-v1", "kind: Workload", "examples-bookinfo-details-v1", "malha install"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in\n%s", want, said)
		}
	}
	_, example, _ := strings.Cut(said, "\n\n")
	example, _, _ = strings.Cut(example, "\n\n")
	got := read(example)
	if model.HasErrors(got.Diagnostics) || len(got.Config.Workloads) != 1 {
		t.Fatalf("the example is wrong: %v\n%s", got.Diagnostics, example)
	}
	w := got.Config.Workloads[0]
	if w.Name.Name != "details-v1" || w.Identity.ServiceAccount != "bookinfo-details" || w.Labels["odd"] != "yes" || len(w.Ports) != 1 || w.Ports[0].Port != 9080 || w.Ports[0].Protocol != ident.HTTP {
		t.Errorf("the example says %+v", w)
	}
	if said := programless("empty", nil).Error(); strings.Contains(said, "cluster") || !strings.Contains(said, "kind: Workload") {
		t.Error(said)
	}
}
