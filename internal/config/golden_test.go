package config_test

import (
	"testing"

	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/golden/manifests"
)

// TestGolden translates the files of each archive; the model and every diagnostic must be as the archive says.
func TestGolden(t *testing.T) {
	golden.Run(t, "testdata", func(_ *testing.T, in *golden.Archive) map[string][]byte {
		cfg, out := manifests.Translate(in)
		out.Put("model", golden.Dump(cfg))
		return out
	})
}
