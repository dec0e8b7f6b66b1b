package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func none(string) string { return "" }

func TestKubeExitCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		say  string
	}{
		{"help", []string{"kube", "--help"}, 0, "--kubeconfig"},
		{"unknown flag", []string{"kube", "--nope"}, 2, "nope"},
		{"an argument", []string{"kube", "x"}, 2, `"x"`},
		{"another domain", []string{"kube", "--cluster-domain", "corp.example"}, 2, "cluster.local"},
		{"too short an age", []string{"kube", "--connection-age", "1s"}, 2, "at least 10s"},
		{"no such kubeconfig", []string{"kube", "--kubeconfig", "/nonexistent"}, 1, "nonexistent"},
		{"no such settings", []string{"kube", "--injection", "/nonexistent"}, 1, "settings of injection"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out output
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if code := run(ctx, c.args, &out, &out); code != c.code || !strings.Contains(out.String(), c.say) {
				t.Errorf("exit code %d, want %d and a word of %s:\n%s", code, c.code, c.say, &out)
			}
		})
	}
}

func TestKubeSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "injection.yaml")
	if err := os.WriteFile(file, []byte("image: malha.dev/malha-proxy:v9\npullPolicy: Never\nlogLevel: debug\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"POD_NAMESPACE": "mesh", "POD_NAME": "malhad-1"}
	s, err := parseKube([]string{"--injection", file, "--adopt", "istio,linkerd", "--trust-domain=corp.example", "--root-namespaces=mesh,istio-system"}, func(k string) string { return env[k] }, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.settings()
	if err != nil {
		t.Fatal(err)
	}
	if c.Namespace != "mesh" || c.Control != "malhad.mesh.svc:15012" || len(c.Adopt) != 2 || c.Trust != "corp.example" {
		t.Errorf("%+v", c)
	}
	if s.o.ProxyImage != "malha.dev/malha-proxy:v9" || s.o.PullPolicy != "Never" || s.o.ProxyLogLevel != "debug" || s.o.Replica != "malhad-1" || !slices.Equal(s.o.Roots, []string{"mesh", "istio-system"}) {
		t.Errorf("%+v", s.o)
	}
	if s, err = parseKube([]string{"--adopt", "consul", "--proxy-image", "x"}, none, io.Discard); err != nil {
		t.Fatal(err)
	}
	if _, err := s.settings(); err == nil || !strings.Contains(err.Error(), "consul") {
		t.Errorf("another mesh: %v", err)
	}
	if s, err = parseKube(nil, none, io.Discard); err != nil || s.o.Namespace != "malha-system" {
		t.Fatal(s, err)
	}
	if c, err := s.settings(); c != nil || err != nil {
		t.Errorf("without an image: %v %v", c, err)
	}
}
