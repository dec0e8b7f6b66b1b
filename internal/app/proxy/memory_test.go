package proxy

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestCgroupLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory.max")
	for text, want := range map[string]int64{"max\n": 0, "67108864\n": 64 << 20, "": 0, "9223372036854771712\n": 0} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, files := range [][]string{{path}, {path + "x", path}, {path, path + "x"}} {
			if got := cgroupLimit(files...); got != want {
				t.Errorf("%q: %d", text, got)
			}
		}
	}
	if cgroupLimit(path+"x") != 0 {
		t.Error("no file is no limit")
	}
}

func TestMemoryWatch(t *testing.T) {
	w := memoryWatch{limit: 1000}
	now := time.Unix(1e9, 0)
	for i, s := range []struct {
		used  uint64
		after time.Duration
		short bool
		every int
	}{
		{100, 0, false, 0},
		{600, 0, false, 0},
		{610, 0, true, 0},
		{550, time.Second, true, 0}, // it was short, and little has come free
		{499, time.Second, false, 0},
		{760, time.Second, true, shedPart},
		{760, 0, true, 0}, // what was ended needs a moment
		{910, 0, true, 1}, // which there is not
		{760, shedLook, true, shedPart},
		{499, 0, false, 0},
	} {
		now = now.Add(s.after)
		if every := w.look(s.used, now); every != s.every || w.short != s.short {
			t.Errorf("look %d, %d of 1000 in use: short %v, one of %d is ended; want %v, %d", i, s.used, w.short, every, s.short, s.every)
		}
	}
}

// The runtime says what is in use, without what the next collection would free; and each collection is told of.
func TestCollectionsAreNoticed(t *testing.T) {
	for _, s := range inUseSamples() {
		found := false
		for _, d := range metrics.All() {
			found = found || d.Name == s.Name
		}
		if !found {
			t.Errorf("the runtime has no counter %q", s.Name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	collected := make(chan struct{}, 1)
	afterCollections(ctx, collected)
	const size = 64 << 20
	kept := &struct{ b []byte }{make([]byte, size)}
	var held [3]uint64
	for i := range held {
		if i == 2 {
			kept.b = nil
		}
		runtime.GC()
		select {
		case <-collected:
		case <-time.After(20 * time.Second):
			t.Fatalf("collection %d was not noticed", i)
		}
		held[i] = inUse(inUseSamples())
		runtime.KeepAlive(kept)
	}
	if held[1] < size || held[2] > held[1]-size/2 {
		t.Errorf("%d MB in use with %d MB, %d without", held[1]>>20, size>>20, held[2]>>20)
	}
	cancel()
}
