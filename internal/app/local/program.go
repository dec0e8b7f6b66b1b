package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

const modulePath = "github.com/malha-mesh/malha"

// sources are the programs of this project that a mesh may need, and their packages in a source checkout.
var sources = map[string]string{
	"malha-proxy": "./cmd/malha-proxy",
	"productpage": "./samples/bookinfo/productpage",
	"details":     "./samples/bookinfo/details",
	"reviews":     "./samples/bookinfo/reviews",
	"ratings":     "./samples/bookinfo/ratings",
}

// Programs finds the executables that a mesh starts. Programs of this project are looked for beside the running
// executable; a malha that was built in a source checkout (`go run ./cmd/malha`) builds them from it; else $PATH has
// them. Nothing is downloaded.
type Programs struct {
	Beside   string       // folder of the running executable
	Checkout string       // root of the source checkout that malha was built in; "" when there is none
	Cache    string       // where programs of the checkout are built
	Building func(string) // told the name of a program that is built for the first time; may be nil
}

// FindPrograms looks at the running executable.
func FindPrograms() (*Programs, error) {
	p := &Programs{}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot tell where malha is installed: %w", err)
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	p.Beside = filepath.Dir(exe)
	// The compiler writes down where this file was, unless it was told to trim it (-trimpath, as releases are).
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		root := filepath.Clean(filepath.Join(filepath.Dir(file), "..", "..", ".."))
		if isCheckout(root) {
			p.Checkout = root
		}
	}
	if cache, err := os.UserCacheDir(); err == nil {
		p.Cache = filepath.Join(cache, "malha", "bin")
	}
	return p, nil
}

func isCheckout(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	return err == nil && bytes.HasPrefix(b, []byte("module "+modulePath+"\n"))
}

// Ours reports whether name is a program of this project.
func (p *Programs) Ours(name string) bool { _, ok := sources[name]; return ok }

// Find returns the absolute path of a program. dir is where relative paths start.
func (p *Programs) Find(ctx context.Context, name, dir string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return executable(name, dir)
	}
	if p.Ours(name) {
		return p.find(ctx, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%q is not in $PATH; install it, or write its path (./%s is relative to the file)", name, name)
	}
	return filepath.Abs(path)
}

// executable checks a path that the user wrote.
func executable(name, dir string) (string, error) {
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("%s does not exist; build it, or correct the path (it is relative to %s)", path, dir)
	case err != nil:
		return "", fmt.Errorf("cannot use it: %w", err)
	case st.IsDir():
		return "", fmt.Errorf("%s is a folder; name the program in it", path)
	case st.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s is not executable; chmod +x it", path)
	}
	return path, nil
}

func (p *Programs) find(ctx context.Context, name string) (string, error) {
	if path := filepath.Join(p.Beside, name); isExecutable(path) {
		return path, nil
	}
	if p.Checkout != "" && p.Cache != "" {
		if _, err := exec.LookPath("go"); err == nil {
			return p.build(ctx, name)
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("%s is neither beside malha (%s) nor in $PATH; install it there, or run malha from its source checkout with Go installed", name, p.Beside)
}

// build brings the executable of a checkout's package up to date. The go command keeps its own cache: nothing is
// compiled when no source changed.
func (p *Programs) build(ctx context.Context, name string) (string, error) {
	if err := os.MkdirAll(p.Cache, 0o755); err != nil {
		return "", fmt.Errorf("cannot make a place for %s: %w", name, err)
	}
	path := filepath.Join(p.Cache, name)
	if !isExecutable(path) && p.Building != nil {
		p.Building(name)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, sources[name])
	cmd.Dir = p.Checkout
	// Modules come from the local cache or not at all: the mesh downloads nothing at run time.
	cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -mod=readonly"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build %s in %s: %w\n%s", name, p.Checkout, err, bytes.TrimSpace(out))
	}
	return path, nil
}

func isExecutable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
