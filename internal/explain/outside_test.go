package explain_test

import (
	"path/filepath"
	"testing"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
)

// TestOutside asks about hosts that are wherever the client wants to go: their clusters have no endpoints in a plan.
func TestOutside(t *testing.T) {
	mesh := offline(t, filepath.Join("testdata", "outside.yaml"))
	for url, want := range map[string]string{
		"http://api.example.com/":        "api.example.com:80",
		"http://deep.in.example.org/x":   "deep.in.example.org:80",
		"http://deep.in.example.org/old": "",
		"http://other.example.com/":      "",
	} {
		w, err := mesh.Request(ident.Name{Namespace: "default", Name: "client"}, explain.Request{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, b := range w.Branches {
			if b.Answer != nil {
				t.Errorf("%s: answered %+v", url, b.Answer)
			}
			for _, e := range b.Endpoints {
				got += e.Address
			}
		}
		if got != want {
			t.Errorf("%s goes to %q, want %q", url, got, want)
		}
	}
}
