package config_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
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
		if text := lines(report.Diagnostics()); text != "" {
			out["diagnostics"] = []byte(text)
		}
		return out
	})
}

func lines(ds []model.Diagnostic) string {
	var b strings.Builder
	for _, d := range ds {
		b.WriteString(d.String() + "\n")
	}
	return b.String()
}
