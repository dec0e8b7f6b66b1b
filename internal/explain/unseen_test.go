package explain_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/explain"
)

// TestUnseen asks for hosts that the mesh has and the sender does not see: who hides them is named.
func TestUnseen(t *testing.T) {
	mesh := offline(t, filepath.Join("testdata", "unseen.yaml"))
	const (
		sidecar  = "which the egress of Sidecar/default/only (testdata/unseen.yaml:41) does not show, and"
		exportTo = "which is not exported to namespace default (exportTo)"
		unknown  = "the mesh does not know this host"
	)
	for _, tc := range []struct{ from, url, want string }{
		{"narrow", "http://shown.other/", ""},
		{"narrow", "http://hidden.other/", "the mesh has hidden.other.svc.cluster.local, " + sidecar},
		{"narrow", "http://hidden.other.svc/x", sidecar},
		{"narrow", "http://hidden.other.svc.cluster.local:80/", sidecar},
		{"narrow", "tcp://hidden.other:80/", sidecar},
		{"narrow", "http://shown.other:8080/", "shown.other.svc.cluster.local has no port 8080 that takes requests"},
		{"narrow", "http://private.other/", exportTo},
		{"alone", "http://hidden.other/", "Sidecar/third/only (testdata/unseen.yaml:54) does not show, or which is not exported to namespace third"},
		{"narrow", "http://hidden/", unknown}, // of its own namespace
		{"narrow", "http://nobody.example/", unknown},
		{"wide", "http://hidden.other/", ""},
		{"wide", "http://private.other/", exportTo},
	} {
		from, err := mesh.Resolve(tc.from)
		if err != nil {
			t.Fatal(err)
		}
		w, err := mesh.Request(from, explain.Request{URL: tc.url})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		switch {
		case w.Answer != nil:
			got = w.Answer.Text
		case w.Host != nil && len(w.Rules) == 0: // it is let pass
			got = w.Host.Why
		}
		if !strings.Contains(got, tc.want) || tc.want == "" && w.Answer != nil {
			t.Errorf("%s from %s: %q, want %q", tc.url, tc.from, got, tc.want)
		}
	}
}
