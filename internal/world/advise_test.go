package world_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/world"
)

// TestAdvise writes what Advise says about the manifests of each archive.
func TestAdvise(t *testing.T) {
	golden.Run(t, filepath.Join("testdata", "advise"), func(t *testing.T, in *golden.Archive) map[string][]byte {
		var objs []config.Object
		var ds []model.Diagnostic
		for _, f := range in.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				o, d := config.Parse(f.Name, f.Data)
				objs, ds = append(objs, o...), append(ds, d...)
			}
		}
		cfg, more := config.Translate(objs)
		if ds = append(ds, more...); model.HasErrors(ds) {
			t.Fatalf("the manifests are wrong: %v", ds)
		}
		p, err := placement.Offline(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for _, d := range world.Advise(world.Build(cfg, p.Instances, p.Gateways)) {
			fmt.Fprintln(&b, d)
		}
		return map[string][]byte{"diagnostics": b.Bytes()}
	})
}
