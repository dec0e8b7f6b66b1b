package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/config/crd"
)

var updateSchemas = flag.Bool("update-schemas", false, "rewrite schema/*.json from the module in go.mod")

// TestSchemasAreThoseOfTheModule holds schema/*.json to the CRDs of the sigs.k8s.io/gateway-api that go.mod names, of the
// experimental channel, which has all of the standard one's fields.
func TestSchemasAreThoseOfTheModule(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("the source of sigs.k8s.io/gateway-api is not here: %v", err)
	}
	found := map[string]*crd.Schema{}
	files, err := filepath.Glob(filepath.Join(dir, "config", "crd", "experimental", "gateway.networking.k8s.io_*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRD in %s: %v", dir, err)
	}
	for _, f := range files {
		kind, s := readCRD(t, f)
		if s != nil {
			found[kind] = s
		}
	}
	for _, kind := range schemaKinds {
		s := found[kind]
		if s == nil {
			t.Errorf("the module has no CRD of %s", kind)
			continue
		}
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, '\n')
		file := filepath.Join("schema", kind+".json")
		if *updateSchemas {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the module says (%v); run: go test ./internal/config/gateway -run Schemas -update-schemas", file, err)
		}
	}
}

// readCRD returns the schema of the spec of the version that is stored.
func readCRD(t *testing.T, file string) (kind string, out *crd.Schema) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc struct {
			Kind string
			Spec struct {
				Names    struct{ Kind string }
				Versions []struct {
					Storage bool
					Schema  struct {
						OpenAPI struct {
							Properties map[string]any
						} `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return kind, out
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if doc.Kind != "CustomResourceDefinition" {
			continue
		}
		for _, v := range doc.Spec.Versions {
			if !v.Storage {
				continue
			}
			data, err := json.Marshal(v.Schema.OpenAPI.Properties["spec"])
			if err != nil {
				t.Fatal(err)
			}
			kind, out = doc.Spec.Names.Kind, &crd.Schema{}
			if err := json.Unmarshal(data, out); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSchemasCompile(t *testing.T) {
	for _, kind := range schemaKinds {
		if _, err := crd.Parse(schemaText(kind)); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
