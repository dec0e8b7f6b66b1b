package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// kubePrograms are the names by which the one binary of programs/kube is called.
var kubePrograms = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl", "loadbalancer"}

// build makes the programs in a cache that is keyed by their sources.
func (c *Cluster) build(ctx context.Context) error {
	src, err := sourceDir()
	if err != nil {
		return err
	}
	key, err := sourceKey(src)
	if err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/var/cache"
	}
	c.bin = filepath.Join(cache, "malha-cluster", Version+"-"+key)
	if err := os.MkdirAll(c.bin, 0o755); err != nil {
		return err
	}
	version := strings.Split(strings.TrimPrefix(Version, "v"), ".")
	const pkg = "k8s.io/component-base/version."
	flags := fmt.Sprintf("-s -w -X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s", pkg, Version, pkg, version[0], pkg, version[1])
	for _, name := range []string{"pause", "dns", "kube"} {
		to := filepath.Join(c.bin, name)
		if _, err := os.Stat(to); err == nil {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", to+".new", "./"+name)
		cmd.Dir, cmd.Env = filepath.Join(src, "programs"), append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
		if err := os.Rename(to+".new", to); err != nil {
			return err
		}
	}
	for _, name := range kubePrograms {
		if err := os.Symlink("kube", filepath.Join(c.bin, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// Whoever opens the cluster finds its programs here, without the sources.
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	if err := os.Remove(c.path("bin")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(c.bin, c.path("bin"))
}

// sourceDir is where this package lies.
func sourceDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if dir := filepath.Dir(file); ok && filepath.IsAbs(dir) {
		return dir, nil
	}
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/malha-mesh/malha/test/cluster").Output()
	if err != nil {
		return "", fmt.Errorf("the sources of the cluster's programs are not here: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// sourceKey names what the programs are made from.
func sourceKey(dir string) (string, error) {
	h := sha256.New()
	for _, pattern := range []string{"programs/go.sum", "programs/*/*.go"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			h.Write(b)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}
