package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	pauseImage = "malha.test/pause:1"
	dnsImage   = "malha.test/coredns:1"
)

// Image is a container image FROM scratch. Pods use it with imagePullPolicy: Never or IfNotPresent: there is no registry.
type Image struct {
	Name       string            // "malha.test/app:1"
	Files      map[string]string // path in the image to a file here
	Entrypoint []string
	Env        []string
	User       string // "65532:65532"; "" root
}

// Load puts images on every node.
func (c *Cluster) Load(ctx context.Context, images ...Image) error {
	if c.External {
		return fmt.Errorf("images can't be loaded into a cluster that was not made here: load them with its own tool (kind load docker-image, …)")
	}
	for i := range c.options.Nodes {
		for _, img := range images {
			if err := c.loadInto(ctx, c.node(i+1), img); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cluster) loadInto(ctx context.Context, n node, img Image) error {
	archive, err := os.CreateTemp("", "image-*.tar")
	if err != nil {
		return err
	}
	defer func() {
		_ = archive.Close()
		_ = os.Remove(archive.Name())
	}()
	if err := img.Write(archive); err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	return run(ctx, "ctr", "--address", c.socket(n), "--namespace", "k8s.io", "images", "import", "--no-unpack=false", archive.Name())
}

// Write writes the image as an archive that docker load, ctr import and kind understand.
func (img Image) Write(w io.Writer) error {
	tag, err := name.NewTag(img.Name)
	if err != nil {
		return err
	}
	layer, err := img.layer()
	if err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{Entrypoint: img.Entrypoint, Env: img.Env, User: img.User}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return err
	}
	return tarball.Write(tag, image, w)
}

func (img Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	paths := make([]string, 0, len(img.Files))
	for p := range img.Files {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	made := map[string]bool{".": true}
	var dirs func(string) error
	dirs = func(d string) error {
		if made[d] {
			return nil
		}
		made[d] = true
		if err := dirs(filepath.Dir(d)); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755})
	}
	if err := dirs("tmp"); err != nil {
		return nil, err
	}
	for _, p := range paths {
		b, err := os.ReadFile(img.Files[p])
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(img.Files[p])
		if err != nil {
			return nil, err
		}
		to := strings.TrimPrefix(p, "/")
		if err := dirs(filepath.Dir(to)); err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: to, Size: int64(len(b)), Mode: int64(info.Mode().Perm()) | 0o444}); err != nil {
			return nil, err
		}
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	return string(out), err
}
