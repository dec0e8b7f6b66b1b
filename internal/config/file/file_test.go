package file_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// service is a manifest of one Service.
func service(name string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {selector: {app: a}, ports: [{port: 80}]}\n"
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(r *file.Result) string {
	var out []string
	for _, s := range r.Config.Services {
		out = append(out, s.Name.Name)
	}
	return strings.Join(out, " ")
}

func codes(r *file.Result) string {
	var out []string
	for _, d := range r.Diagnostics {
		out = append(out, filepath.Base(d.Origin.File)+" "+d.Code)
	}
	return strings.Join(out, ", ")
}

func TestRead(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "linked.yaml"), service("linked"))
	write(t, filepath.Join(outside, "more", "deep.yaml"), service("deep"))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), service("a"))
	write(t, filepath.Join(dir, "sub", "b.yml"), service("b"))
	write(t, filepath.Join(dir, "sub", "c.json"), `{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"selector":{"app":"a"},"ports":[{"port":80}]}}`)
	write(t, filepath.Join(dir, ".hidden.yaml"), "{")
	write(t, filepath.Join(dir, ".git", "x.yaml"), "{")
	write(t, filepath.Join(dir, "a.yaml~"), "{")
	write(t, filepath.Join(dir, "README.md"), "{")
	for link, target := range map[string]string{
		"link.yaml": filepath.Join(outside, "linked.yaml"), "more": filepath.Join(outside, "more"), "sub/up": dir,
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	r := file.Read(dir)
	if got, want := names(r), "a b c deep linked"; got != want || len(r.Diagnostics) > 0 {
		t.Fatalf("services %q with %q, want %q with none", got, codes(r), want)
	}
	if got, want := r.Config.Services[1].Origin.Place(), filepath.Join(dir, "sub", "b.yml")+":1"; got != want {
		t.Errorf("the place of b is %s, want %s", got, want)
	}
	if got := names(file.Read(filepath.Join(dir, "a.yaml"))); got != "a" {
		t.Errorf("reading one file gives %q", got)
	}
}

func TestReadBad(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "good.yaml"), service("a"))
	write(t, filepath.Join(dir, "bad.yaml"), "{")
	write(t, filepath.Join(dir, "twice.yaml"), service("a"))
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "gone.yaml")); err != nil {
		t.Fatal(err)
	}
	r := file.Read(dir)
	if got, want := codes(r), "bad.yaml MALHA0101, gone.yaml MALHA0109, twice.yaml MALHA0108"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := names(r); got != "" { // which of the two is meant nobody knows
		t.Errorf("services %q", got)
	}
	if got := codes(file.Read(filepath.Join(dir, "nothing"))); got != "nothing MALHA0109" {
		t.Errorf("a folder that is not there: %s", got)
	}
	empty := file.Read(t.TempDir())
	if len(empty.Config.Services) > 0 || len(empty.Diagnostics) != 1 || empty.Diagnostics[0].Code != manifest.CodeNothing {
		t.Errorf("an empty folder: services %q, %s", names(empty), codes(empty))
	}
}

func TestRunDirIsAbsolute(t *testing.T) {
	dir := t.TempDir()
	workload := "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {run: {command: [./a], dir: bin}}\n"
	write(t, filepath.Join(dir, "sub", "w.yaml"), workload)
	t.Chdir(dir)
	r := file.Read("sub")
	if len(r.Diagnostics) > 0 {
		t.Fatal(codes(r))
	}
	here, err := filepath.Abs("sub/bin")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Config.Workloads[0].Run.Dir; got != here {
		t.Errorf("dir %q, want %q", got, here)
	}
}

func TestParse(t *testing.T) {
	if r := file.Parse("-", strings.NewReader(service("a")+"---\n"+service("b"))); names(r) != "a b" {
		t.Errorf("got %q, %s", names(r), codes(r))
	}
	if r := file.Parse("-", failing{}); codes(r) != "- MALHA0109" || names(r) != "" {
		t.Errorf("a reader that fails gives %q, %s", names(r), codes(r))
	}
	if r := file.Parse("-", strings.NewReader(strings.Repeat("#", manifest.MaxBytes+1))); codes(r) != "- MALHA0102" {
		t.Errorf("a huge input gives %q, %s", names(r), codes(r))
	}
}

// TestEachObjectForItself edits a folder: what is wrong with one object, or file, is not the others' business.
func TestEachObjectForItself(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one.yaml"), filepath.Join(dir, "two.yaml")
	write(t, one, service("a")+"---\n"+service("b"))
	write(t, two, service("c"))
	s := file.New(file.Options{Dir: dir})
	for _, step := range []struct{ what, one, two, services, codes string }{
		{"as it is", service("a") + "---\n" + service("b"), service("c"), "a:80 b:80 c:80", ""},
		{"a field that is none", strings.Replace(service("a"), "port: 80", "prot: 81", 1) + "---\n" + service("b"), strings.Replace(service("c"), "80", "82", 1),
			"a:80 b:80 c:82", "one.yaml MALHA0112, one.yaml MALHA0201"},
		{"still", strings.Replace(service("a"), "port: 80", "prot: 81", 1) + "---\n" + service("b"), service("c"), "a:80 b:80 c:80", "one.yaml MALHA0112, one.yaml MALHA0201"},
		{"a new object is wrong", service("a") + "---\n" + strings.Replace(service("new"), "port: 80", "prot: 81", 1), service("c"), "a:80 c:80", "one.yaml MALHA0112, one.yaml MALHA0201"},
		{"no YAML", "{", strings.Replace(service("c"), "80", "83", 1), "a:80 c:83", "one.yaml MALHA0112, one.yaml MALHA0101"},
		{"no YAML, and its object elsewhere", "{", strings.Replace(service("a"), "80", "84", 1), "a:84", "one.yaml MALHA0101"},
		{"whole", service("b"), service("c"), "b:80 c:80", ""},
		{"a copy", service("b"), service("c") + "---\n" + service("b"), "b:80 c:80", "one.yaml MALHA0112, two.yaml MALHA0108"},
		{"gone", service("b"), service("x"), "b:80 x:80", ""},
	} {
		write(t, one, step.one)
		write(t, two, step.two)
		r := s.Load()
		var got []string
		for _, s := range r.Config.Services {
			got = append(got, fmt.Sprintf("%s:%d", s.Name.Name, s.Ports[0].Port))
		}
		if text := strings.Join(got, " "); text != step.services {
			t.Errorf("%s: services %q, want %q", step.what, text, step.services)
		}
		if got := codes(r); got != step.codes {
			t.Errorf("%s: %q, want %q\n%v", step.what, got, step.codes, r.Diagnostics)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken pipe") }

// watched is a running Source.
type watched struct {
	t       *testing.T
	results chan *file.Result
}

func watch(t *testing.T, path string) *watched {
	w := &watched{t: t, results: make(chan *file.Result, 100)}
	s := file.New(file.Options{Dir: path})
	s.Load()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx, func(r *file.Result) { w.results <- r }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return w
}

// until waits for a result with these services, "!" when it has errors. In between others may come: an editor's
// steps are not one.
func (w *watched) until(want string) {
	w.t.Helper()
	start, last := time.Now(), "nothing"
	for limit := time.After(time.Minute); ; {
		select {
		case r := <-w.results:
			if last = names(r); model.HasErrors(r.Diagnostics) {
				last += "!"
			}
			if last == want {
				w.t.Logf("%q after %v", want, time.Since(start).Round(time.Millisecond))
				return
			}
		case <-limit:
			w.t.Fatalf("waiting for %q; the last result was %q", want, last)
		}
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	a := filepath.Join(dir, "a.yaml")
	write(t, a, service("a"))
	w := watch(t, dir)

	write(t, a, service("b")) // in place, possibly before the watch is there
	w.until("b")

	write(t, filepath.Join(dir, ".a.yaml.swp"), service("x")) // rename and replace
	if err := os.Rename(filepath.Join(dir, ".a.yaml.swp"), a); err != nil {
		t.Fatal(err)
	}
	w.until("x")

	write(t, filepath.Join(dir, "new", "deeper", "c.yaml"), service("c")) // folders that were not there
	w.until("c x")
	write(t, filepath.Join(dir, "new", "deeper", "c.yaml"), service("d"))
	w.until("d x")

	write(t, a, "{") // broken, and whole again
	write(t, filepath.Join(dir, "new", "deeper", "c.yaml"), service("e"))
	w.until("e x!")
	write(t, a, service("a"))
	w.until("a e")

	if err := os.RemoveAll(filepath.Join(dir, "new")); err != nil {
		t.Fatal(err)
	}
	w.until("a")

	if err := os.RemoveAll(dir); err != nil { // the folder itself goes, and comes back
		t.Fatal(err)
	}
	w.until("a!") // it keeps serving
	write(t, a, service("back"))
	w.until("back")
	write(t, a, service("again"))
	w.until("again")
}

func TestWatchFile(t *testing.T) {
	dir := t.TempDir()
	a := filepath.Join(dir, "a.yaml")
	write(t, a, service("a"))
	w := watch(t, a)
	write(t, filepath.Join(dir, "b.yaml"), service("b")) // not ours
	write(t, filepath.Join(dir, "next"), service("c"))
	if err := os.Rename(filepath.Join(dir, "next"), a); err != nil {
		t.Fatal(err)
	}
	w.until("c")
}

func TestWatchSaysNothingWithoutChange(t *testing.T) {
	dir := t.TempDir()
	a := filepath.Join(dir, "a.yaml")
	write(t, a, service("a"))
	w := watch(t, dir)
	write(t, a, service("a")) // the same bytes, with a new time
	write(t, filepath.Join(dir, "notes.txt"), "x")
	write(t, a, service("b"))
	w.until("b")
	select {
	case r := <-w.results:
		t.Errorf("another result without a change: %s", names(r))
	case <-time.After(300 * time.Millisecond): // longer than the watcher settles
	}
}

// Of several files that cannot be read, one may go: then its objects go too.
func TestAFileThatCannotBeReadIsDeleted(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		write(t, filepath.Join(dir, name+".yaml"), service(name))
	}
	w := watch(t, dir)
	for _, name := range []string{"a", "b"} {
		if err := os.Symlink("/no/such/file", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	for r := range w.results {
		if strings.Count(codes(r), manifest.CodeUnreadable) == 2 {
			break
		}
	}
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	w.until("b!")
}
