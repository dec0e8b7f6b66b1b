package istio_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
)

// TestGolden translates the files of each archive; the model and every diagnostic must be as the archive says.
func TestGolden(t *testing.T) {
	golden.Run(t, "testdata", func(t *testing.T, in *golden.Archive) map[string][]byte {
		var objs []config.Object
		var report manifest.Report
		for _, f := range in.Files {
			if strings.HasPrefix(f.Name, golden.Want) {
				continue
			}
			found, ds := config.Parse(f.Name, f.Data)
			objs = append(objs, found...)
			report.Add(ds...)
		}
		cfg, ds := config.Translate(objs)
		report.Add(ds...)
		out := map[string][]byte{}
		if text := golden.Dump(cfg); text != "" {
			out["model"] = []byte(text)
		}
		var lines strings.Builder
		for _, d := range report.Diagnostics() {
			lines.WriteString(d.String() + "\n")
		}
		if lines.Len() > 0 {
			out["diagnostics"] = []byte(lines.String())
		}
		return out
	})
}
