package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/malha-mesh/malha/test/cluster"
)

// Mesh is the mesh's command line, and the images of the same version.
type Mesh struct {
	Version string
	Malha   string // the program
	Images  []cluster.Image
}

// BuildMesh builds the mesh of this source tree into dir.
func BuildMesh(ctx context.Context, dir string) (*Mesh, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	const version = "v0.0.0-e2e"
	// Without the -dirty of the work tree: the images are told by their name.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", dir+"/", "./cmd/malha", "./cmd/malhad", "./cmd/malha-proxy")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the mesh: %w\n%s", err, out)
	}
	m := &Mesh{Version: version, Malha: filepath.Join(dir, "malha")}
	for name, user := range map[string]string{"malhad": "65532:65532", "malha-proxy": "1337:1337"} {
		m.Images = append(m.Images, cluster.Image{
			Name: "malha.dev/" + name + ":" + version, Files: map[string]string{"/" + name: filepath.Join(dir, name)},
			Entrypoint: []string{"/" + name}, User: user,
		})
	}
	return m, nil
}

// Kinds applies the kinds of Istio and of the Gateway API, from the modules that the mesh is built with.
func Kinds(ctx context.Context, c *cluster.Cluster) error {
	for _, k := range [][2]string{{"istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml"}, {"sigs.k8s.io/gateway-api", "config/crd/standard"}} {
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", k[0])
		cmd.Dir = "../.."
		dir, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("where the module %s is: %w", k[0], err)
		}
		if _, err := c.Kubectl(ctx, "", "apply", "--server-side", "--force-conflicts", "-f", filepath.Join(strings.TrimSpace(string(dir)), k[1])); err != nil {
			return err
		}
	}
	_, err := c.Kubectl(ctx, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
	return err
}

// Run runs malha against the cluster.
func (m *Mesh) Run(ctx context.Context, c *cluster.Cluster, args ...string) (string, error) {
	out, err := c.Command(ctx, m.Malha, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("malha %v: %w\n%s", args, err, out)
	}
	return string(out), nil
}
