package main

import (
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write deps.txt anew")

// TestDeps compares what the proxy links with deps.txt: its memory is decided by that. A new line there wants a reason
// in the commit. go test ./cmd/malha-proxy -run Deps -update writes the file.
func TestDeps(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var deps []string
	for _, d := range strings.Fields(string(out)) {
		// What the standard library keeps to itself changes with each Go release and is not our choice.
		parts := strings.Split(d, "/")
		if standard := !strings.Contains(parts[0], "."); standard && (parts[0] == "vendor" || slices.Contains(parts, "internal")) {
			continue
		}
		deps = append(deps, d)
	}
	slices.Sort(deps)
	for _, d := range deps {
		for _, banned := range []string{"net/http", "k8s.io/", "istio.io/", "google.golang.org/", "github.com/prometheus/", "sigs.k8s.io/"} {
			if d == banned || strings.HasPrefix(d, banned) && strings.HasSuffix(banned, "/") {
				t.Errorf("the proxy must not link %s", d)
			}
		}
	}
	got := strings.Join(deps, "\n") + "\n"
	if *update {
		if err := os.WriteFile("deps.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("what the proxy links has changed (-deps.txt +now); if that is meant, run with -update:\n%s", d)
	}
}
