package config

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/model"
)

// TestMistakesLeaveNoTrace: what was found wrong with an object before the dialects finish keeps all of it from them: the others become
// what they become without it. Every archive of golden tests is asked.
func TestMistakesLeaveNoTrace(t *testing.T) {
	archives := golden.Read(t, "testdata")
	for _, dialect := range []string{"gateway", "istio"} {
		archives = append(archives, golden.Read(t, filepath.Join(dialect, "testdata"))...)
	}
	asked := 0
	for _, a := range archives {
		t.Run(a.Name(), func(t *testing.T) {
			var objs []Object
			for _, f := range a.Inputs() {
				found, _ := Parse(f.Name, f.Data)
				objs = append(objs, found...)
			}
			all, said, bad := staged(objs)
			var good []Object
			for i := range objs {
				if !bad[i] {
					good = append(good, objs[i])
				}
			}
			if len(good) == len(objs) {
				return
			}
			asked++
			want, wantSaid, _ := staged(good)
			if d := cmp.Diff(want, all); d != "" {
				t.Errorf("the configuration, without and with them:\n%s", d)
			}
			if d := cmp.Diff(wantSaid, said); d != "" {
				t.Errorf("what is said at the end, without and with them:\n%s", d)
			}
		})
	}
	if asked == 0 {
		t.Error("no archive has an object with a mistake")
	}
}

// staged is Translate, with what was said at the end alone, and which objects had an error before.
func staged(objs []Object) (out *model.Config, said []model.Diagnostic, bad []bool) {
	out, bad = &model.Config{}, make([]bool, len(objs))
	table := newTable()
	for i := range objs {
		var report manifest.Report
		if kind := table.find(&objs[i], &report); kind != nil {
			table.translate(kind, &objs[i], out, &report)
			_, errors := report.Len()
			bad[i] = errors > 0 && !kind.KeepsBroken
		}
	}
	var report manifest.Report
	table.finish(out, &report)
	return out, report.Diagnostics(), bad
}
