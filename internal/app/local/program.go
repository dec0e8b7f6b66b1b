package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
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
// them.
type Programs struct {
	Beside   string       // folder of the running executable
	Checkout string       // root of the source checkout that malha was built in; "" when there is none
	Cache    string       // where programs of the checkout are built
	Building func(string) // told the names of programs that are built for the first time; may be nil

	mu    sync.Mutex
	found map[string]string // programs of this project, by name
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
	if by := interpreter(path); by != "" && !isExecutable(by) {
		// execve(2) says only "no such file", of a file that is there.
		return "", fmt.Errorf("%s is to be run by %s, which does not exist; install it, or correct the first line", path, by)
	}
	return path, nil
}

// interpreter returns the absolute path that a script's first line names; "" for what is no script.
func interpreter(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 256) // as far as Linux looks (BINPRM_BUF_SIZE)
	n, _ := io.ReadFull(f, head)
	line, script := strings.CutPrefix(string(head[:n]), "#!")
	line, _, _ = strings.Cut(line, "\n")
	if words := strings.Fields(line); script && len(words) > 0 && filepath.IsAbs(words[0]) {
		return words[0]
	}
	return ""
}

// find returns a program of this project. What was found once stays: a mesh does not change programs while it runs.
func (p *Programs) find(ctx context.Context, name string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path, ok := p.found[name]; ok {
		return path, nil
	}
	if path := filepath.Join(p.Beside, name); isExecutable(path) {
		return p.keep(name, path), nil
	}
	if p.canBuild() {
		if err := p.build(ctx, []string{name}); err != nil {
			return "", err
		}
		return p.found[name], nil
	}
	if path, err := exec.LookPath(name); err == nil {
		if path, err = filepath.Abs(path); err == nil {
			return p.keep(name, path), nil
		}
	}
	return "", fmt.Errorf("%s is neither beside malha (%s) nor in $PATH; install it there, or run malha from its source checkout with Go installed", name, p.Beside)
}

// Prepare builds, in one go, those of the named programs of this project that have to be built.
func (p *Programs) Prepare(ctx context.Context, names []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.canBuild() {
		return nil
	}
	var missing []string
	for _, n := range names {
		if _, ok := p.found[n]; !ok && p.Ours(n) && !isExecutable(filepath.Join(p.Beside, n)) && !slices.Contains(missing, n) {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return p.build(ctx, missing)
}

func (p *Programs) canBuild() bool {
	if p.Checkout == "" || p.Cache == "" {
		return false
	}
	_, err := exec.LookPath("go")
	return err == nil
}

func (p *Programs) keep(name, path string) string {
	if p.found == nil {
		p.found = make(map[string]string)
	}
	p.found[name] = path
	return path
}

// build brings the executables of a checkout's packages up to date. The go command keeps its own cache: nothing is
// compiled when no source changed.
func (p *Programs) build(ctx context.Context, names []string) error {
	if err := os.MkdirAll(p.Cache, 0o755); err != nil {
		return fmt.Errorf("cannot make a place for %s: %w", strings.Join(names, ", "), err)
	}
	args := []string{"build", "-o", p.Cache + string(filepath.Separator)}
	var first []string
	for _, n := range names {
		args = append(args, sources[n])
		if !isExecutable(filepath.Join(p.Cache, n)) {
			first = append(first, n)
		}
	}
	if len(first) > 0 && p.Building != nil {
		p.Building(strings.Join(first, ", "))
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = p.Checkout
	// As for the `go run` that brought us here: modules that this machine has already are not asked for again.
	cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -mod=readonly"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s in %s: %w\n%s", strings.Join(names, ", "), p.Checkout, err, bytes.TrimSpace(out))
	}
	for _, n := range names {
		p.keep(n, filepath.Join(p.Cache, n))
	}
	return nil
}

func isExecutable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
