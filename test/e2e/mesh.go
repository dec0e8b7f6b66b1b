package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/malha-mesh/malha/test/cluster"
)

// Mesh is the mesh's command line, and the archives of its images, as users get them.
type Mesh struct {
	Version  string
	Malha    string   // the program
	Archives []string // of malhad, malha-proxy and the programs of Bookinfo
}

// BuildMesh builds the mesh of this source tree into dir with the target that users build it with: make images.
func BuildMesh(ctx context.Context, dir string) (*Mesh, error) {
	const version = "v0.0.0-e2e"
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", "images", "BIN="+dir, "VERSION="+version)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "GOWORK=off", "MAKEFLAGS=", "MFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make images: %w\n%s", err, out)
	}
	m := &Mesh{Version: version, Malha: filepath.Join(dir, "malha")}
	m.Archives, err = filepath.Glob(filepath.Join(dir, "images", "*.tar"))
	return m, err
}

// Kinds applies the kinds of Istio, of the Gateway API and of SMI. Those of SMI, which is archived, are in manifests; the others
// are of the modules that the mesh is built with.
func Kinds(ctx context.Context, c *cluster.Cluster) error {
	files := []string{"manifests/smi.yaml"}
	for _, k := range [][2]string{{"istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml"}, {"sigs.k8s.io/gateway-api", "config/crd/standard"}} {
		cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", k[0])
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "GOWORK=off")
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("the module %s: %w", k[0], err)
		}
		var module struct{ Dir string }
		if err := json.Unmarshal(out, &module); err != nil {
			return err
		}
		files = append(files, filepath.Join(module.Dir, k[1]))
	}
	for _, f := range files {
		if _, err := c.Kubectl(ctx, "", "apply", "--server-side", "--force-conflicts", "-f", f); err != nil {
			return err
		}
	}
	_, err := c.Kubectl(ctx, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=300s")
	return err
}

// Load puts the images of the mesh, and of Bookinfo, on the cluster.
func (m *Mesh) Load(ctx context.Context, c *cluster.Cluster) error {
	for _, a := range m.Archives {
		if err := c.LoadArchive(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// Run runs malha against the cluster.
func (m *Mesh) Run(ctx context.Context, c *cluster.Cluster, args ...string) (string, error) {
	out, err := c.Command(ctx, m.Malha, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("malha %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
