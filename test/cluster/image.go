package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

const (
	pauseImage = "malha.test/pause:1"
	dnsImage   = "malha.test/coredns:1"
)

// Image is a container image FROM scratch. Pods use it with imagePullPolicy: Never or IfNotPresent: there is no registry.
type Image struct {
	Name       string            // "malha.test/app:1"
	Files      map[string]string // path in the image to a file here
	Links      map[string]string // path in the image to what a symbolic link there points to
	Folders    []string          // paths that are to be there, empty and for all to write
	Entrypoint []string
	Args       []string // what a pod's args replace
	Env        []string
	User       string // "65532:65532"; "" root
}

// Load puts images on every node.
func (c *Cluster) Load(ctx context.Context, images ...Image) error {
	for _, img := range images {
		if err := img.archive(func(path string) error { return c.LoadArchive(ctx, path) }); err != nil {
			return fmt.Errorf("image %s: %w", img.Name, err)
		}
	}
	return nil
}

// LoaderEnv names the command that puts an image archive, its last argument, on the nodes of KUBECONFIG's cluster.
const LoaderEnv = "MALHA_CLUSTER_LOAD"

// CanLoad says why images can't be put on the nodes.
func (c *Cluster) CanLoad() error {
	if c.External && len(loader()) == 0 {
		return fmt.Errorf("how images come to the nodes of the cluster of KUBECONFIG is not known: set %s to a command that takes an archive, such as %q or %q, or to %q when they are there",
			LoaderEnv, "kind load image-archive", "minikube image load", "true")
	}
	return nil
}

func loader() []string { return strings.Fields(os.Getenv(LoaderEnv)) }

// LoadArchive puts the images of an archive, as docker save or an OCI tool writes it, on every node.
func (c *Cluster) LoadArchive(ctx context.Context, path string) error {
	if err := c.CanLoad(); err != nil {
		return err
	}
	if c.External {
		l := loader()
		return run(ctx, l[0], append(l[1:], path)...)
	}
	for i := range c.size() {
		if err := c.importInto(ctx, c.node(i+1), path); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) importInto(ctx context.Context, n node, path string) error {
	return run(ctx, "ctr", "--address", c.socket(n), "--namespace", "k8s.io", "images", "import", "--no-unpack=false", path)
}

// archive writes the image into a file that is there while f runs.
func (img Image) archive(f func(path string) error) error {
	file, err := os.CreateTemp("", "image-*.tar")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	if err := errors.Join(img.Write(file), file.Close()); err != nil {
		return err
	}
	return f(file.Name())
}

// Write writes the image as an archive that docker load, ctr import and kind understand. The same files make the same bytes.
func (img Image) Write(w io.Writer) error {
	layer, err := img.layer()
	if err != nil {
		return err
	}
	type rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	// https://github.com/opencontainers/image-spec/blob/main/config.md
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": img.Entrypoint, "Cmd": img.Args, "Env": img.Env, "User": img.User},
		"rootfs": rootfs{"layers", []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return err
	}
	const layerName = "layer.tar"
	configName := digest(config) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{img.Name}, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{{"manifest.json", manifest}, {configName, config}, {layerName, layer}} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: 0o644}); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	return t.Close()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (img Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{".": true}
	var dirs func(string, int64) error
	dirs = func(d string, mode int64) error {
		if made[d] {
			return nil
		}
		made[d] = true
		if err := dirs(filepath.Dir(d), 0o755); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: mode})
	}
	for _, d := range slices.Sorted(slices.Values(append([]string{"/tmp"}, img.Folders...))) {
		if err := dirs(strings.TrimPrefix(d, "/"), 0o1777); err != nil {
			return nil, err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(img.Files)) {
		b, err := os.ReadFile(img.Files[p])
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(img.Files[p])
		if err != nil {
			return nil, err
		}
		mode := int64(0o644)
		if info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		to := strings.TrimPrefix(p, "/")
		if err := dirs(filepath.Dir(to), 0o755); err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: to, Size: int64(len(b)), Mode: mode}); err != nil {
			return nil, err
		}
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(img.Links)) {
		to := strings.TrimPrefix(p, "/")
		if err := dirs(filepath.Dir(to), 0o755); err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: to, Linkname: img.Links[p], Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	return string(out), err
}
