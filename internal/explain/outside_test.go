package explain_test

import (
	"path/filepath"
	"strings"
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

// TestNetworks asks about hosts of which EgressNetworks say by address whether they may be reached.
func TestNetworks(t *testing.T) {
	mesh := offline(t, filepath.Join("testdata", "networks.yaml"))
	for url, want := range map[string]string{
		"http://192.0.2.1/":       "PassthroughCluster by EgressNetwork default/hole",
		"http://192.0.2.129:81/":  "host_not_in_registry by EgressNetwork default/closed",
		"http://198.18.0.1/":      "PassthroughCluster by ",
		"http://other.example/":   "PassthroughCluster by ",
		"tcp://192.0.2.129:5432/": "host_not_in_registry by EgressNetwork default/closed",
	} {
		w, err := mesh.Request(ident.Name{Namespace: "default", Name: "client"}, explain.Request{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		switch {
		case w.Answer != nil:
			got = w.Answer.Detail + " by " + named(w.Answer.Origin)
		case len(w.Branches) == 1 && w.Host != nil:
			got = w.Branches[0].Cluster + " by " + named(w.Host.Origin)
			if name := strings.Contains(w.Host.Why, "EgressNetworks"); name != strings.Contains(url, "other") {
				t.Errorf("%s: %s", url, w.Host.Why)
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

func named(o ident.Origin) string {
	if o.Kind == "" {
		return ""
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}
