package ctl

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// malha runs the command line in a state directory where no mesh runs.
func malha(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{"--state", t.TempDir()}, args...)
	code = Main(t.Context(), "v1.2.3", args, strings.NewReader(stdin), &out, &errs)
	return out.String(), errs.String(), code
}

func TestMistakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vs.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: v1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "package.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, "start one with `malha up`"},
		{[]string{"get", "foo"}, "unknown kind \"foo\"; `malha get --help` lists them"},
		{[]string{"get", "virtualservise"}, "did you mean virtualservice?"},
		{[]string{"get", "pods"}, "`malha get workloads`"},
		{[]string{"get", "vs,foo"}, `unknown kind "foo"`},
		{[]string{"get", "vs/a", "b"}, `"b" has no kind; write KIND/NAME for each`},
		{[]string{"get", "vs/"}, "names no object"},
		{[]string{"get", "all", "a"}, "all is no kind"},
		{[]string{"get", "vs", "-l", "a in"}, "is no selector"},
		{[]string{"get", "vs", "a", "-l", "a=b"}, "cannot go together"},
		{[]string{"get", "vs", "-w"}, "watch -n 1 malha get"},
		{[]string{"get", "vs", "-o", "xml"}, "must be table, wide, name, yaml or json"},
		{[]string{"get", "vs", "-o", "jsonpath={.items}"}, "pipe -o json into jq"},
		{[]string{"apply"}, "-f is missing; write malha apply -f FILE|DIR|-, see `malha apply --help`"},
		{[]string{"apply", "a.yaml", "b.yaml"}, "write malha apply -f a.yaml -f b.yaml"},
		{[]string{"apply", "-k", "dir"}, "kubectl kustomize dir | malha apply -f -"},
		{[]string{"apply", "-f", "https://example.com/x.yaml"}, "nothing is downloaded"},
		{[]string{"apply", "-f", "x", "--dry-run=maybe"}, "must stand alone"},
		{[]string{"delete"}, "-f is missing"},
		{[]string{"delete", "vs"}, "which of them? write malha delete vs NAME, or --all"},
		{[]string{"delete", "vs", "a", "--all"}, "cannot go together"},
		{[]string{"delete", "vs", "a", "-f", "x"}, "cannot go together"},
		{[]string{"get"}, "write malha get KIND"},
		{[]string{"compile", "-f", "x"}, "--proxy is missing; write malha compile"},
		{[]string{"compile", "-f", file, "--proxy", "a", "-o", "json"}, "-o names a file here"},
		{[]string{"curl", "http://a"}, "--from is missing"},
		{[]string{"curl", "--from", "a", "-w", "%{http_cod}", "http://a"}, "did you mean http_code?"},
		{[]string{"curl", "--from", "a", "-w", "%{ssl_verify_result}", "http://a"}, "`malha curl --help` lists"},
		{[]string{"start"}, "did you mean `malha up`?"},
		{[]string{"down", "now"}, `"now" is one argument too many; write malha down`},
		{[]string{"stauts"}, "did you mean `malha status`?"},
		{[]string{"curl", "--from", "a", "-m", "soon", "http://a"}, "write it as 5, 0.5 or 100ms"},
		{[]string{"curl", "--from", "a", "-m", "0", "http://a"}, "not a time to wait"},
		{[]string{"apply", "-f", "/does/not/exist"}, "does not exist; name a file or a folder"},
		{[]string{"apply", "-f", t.TempDir()}, "holds no manifest"},
		{[]string{"apply", "-f", foreign}, "holds no manifest"},
		{[]string{"apply", "-f", file}, "no mesh is running"},
		{[]string{"up", "-f", "/does/not/exist"}, "cannot read /does/not/exist"},
		{[]string{"up", "-f", ""}, "-f names nothing"},
		{[]string{"down", "--timeout", "-1s"}, "not a time to wait"},
		{[]string{"up", "--gateway-port", "70000"}, "not a port"},
		{[]string{"up", "--cert-ttl", "1ms"}, "too short"},
		{[]string{"up", "--cert-ttl", "0"}, "too short"},
		{[]string{"up", "-f", ".", "-f", "testdata"}, "-f stands twice"},
		{[]string{"up", "--timeout", "0s"}, "not a time to wait"},
		{[]string{"url", "moon"}, "ask for gateway or metrics"},
		{[]string{"compile", "-f", "../../samples/bookinfo/mesh", "--proxy", "a/b/c"}, "NAMESPACE/NAME"},
		{[]string{"frobnicate"}, "unknown command"},
		{[]string{"status", "--frob"}, "malha status --help"},
	} {
		out, errs, code := malha(t, "", c.args...)
		if code != 1 || out != "" || !strings.HasPrefix(errs, "error: ") || !strings.Contains(errs, c.want) || strings.Contains(errs, "Usage:") {
			t.Errorf("malha %s: exit code %d, stdout %q, stderr %q; want one error with %q", strings.Join(c.args, " "), code, out, errs, c.want)
		}
	}
}

func TestEveryCommandHasHelpWithExamples(t *testing.T) {
	s := &session{ui: newUI(io.Discard, io.Discard)}
	for _, c := range s.root().Commands() {
		if c.Example == "" || c.Short == "" {
			t.Errorf("malha %s has no example or no description", c.Name())
		}
	}
}

// TestReadingCommandsAreForPrograms: what only reads can be read by programs too. The others write what they are for: manifests, an
// address, a body, lines of a log.
func TestReadingCommandsAreForPrograms(t *testing.T) {
	writes := []string{"inject", "uninject", "up", "down", "apply", "delete", "url", "curl", "logs"}
	s := &session{ui: newUI(io.Discard, io.Discard)}
	for _, c := range s.root().Commands() {
		if c.Flags().Lookup("output") == nil && !slices.Contains(writes, c.Name()) {
			t.Errorf("malha %s has no -o", c.Name())
		}
	}
}

func TestVersionAndDownWithoutMesh(t *testing.T) {
	if out, _, code := malha(t, "", "version"); code != 0 || !strings.HasPrefix(out, "malha v1.2.3 ") {
		t.Errorf("version: %d %q", code, out)
	}
	if out, _, code := malha(t, "", "--version"); code != 0 || !strings.HasPrefix(out, "malha v1.2.3 ") {
		t.Errorf("--version: %d %q", code, out)
	}
	if out, errs, code := malha(t, "", "down"); code != 0 || out != "" || !strings.Contains(errs, "nothing to stop") {
		t.Errorf("down: %d %q %q", code, out, errs)
	}
}

func TestCompile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.json")
	if _, errs, code := malha(t, "", "compile", "-f", "../../samples/bookinfo/mesh", "--proxy", "productpage-v1", "-o", path); code != 0 {
		t.Fatalf("compile: %s", errs)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 { // it may hold private keys
		t.Errorf("the plan file: %v, %v", info, err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(`"outbound|9080||reviews.default.svc.cluster.local"`)) {
		t.Errorf("%v; the plan has no cluster for reviews", err)
	}
	out, _, _ := malha(t, "", "compile", "-f", "../../samples/bookinfo/mesh", "--proxy", "productpage-v1")
	if out != string(b) {
		t.Error("two compilations of one folder differ")
	}
	if _, errs, code := malha(t, "", "compile", "-f", "../../samples/bookinfo/mesh", "--proxy", "gateway", "-o", path); code != 0 {
		t.Errorf("compile for the gateway: %s", errs)
	}
	if _, errs, code := malha(t, "", "compile", "-f", "../../samples/bookinfo/mesh", "--proxy", "review-v1"); code != 1 || !strings.Contains(errs, "did you mean reviews-v1?") {
		t.Errorf("compile of a misspelt proxy: %d %s", code, errs)
	}
	if _, errs, code := malha(t, "", "compile", "-f", "../../samples/bookinfo/mesh", "--proxy", "nobody"); code != 1 || !strings.Contains(errs, "default/productpage-v1") {
		t.Errorf("compile of an unknown proxy: %d %s", code, errs)
	}
}

// A terminal, or a log that collects what was printed, gets no private key unless somebody asks for it.
func TestCompileKeepsKeysToItself(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../samples/shop/mesh")); err != nil {
		t.Fatal(err)
	}
	secret, err := exec.Command("go", "run", "../../samples/shop/certificate").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "certificate.yaml"), secret, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"compile", "-f", dir, "--proxy", "default/shop-gateway"}
	hidden, errs, code := malha(t, "", args...)
	if code != 0 {
		t.Fatalf("compile: %s", errs)
	}
	shown, _, _ := malha(t, "", append(args, "--show-keys")...)
	key := func(out string) string {
		var p plan.Plan
		if err := json.Unmarshal([]byte(out), &p); err != nil || len(p.Secrets) == 0 {
			t.Fatalf("%d secrets, %v", len(p.Secrets), err)
		}
		return string(p.Secrets[0].Key)
	}
	if key(hidden) != "(private key)" {
		t.Errorf("printed: %q", key(hidden))
	}
	if !strings.Contains(key(shown), "PRIVATE KEY-----") {
		t.Errorf("with --show-keys: %q", key(shown))
	}
}

func TestTableAlignsWhatIsSeen(t *testing.T) {
	tb := &table{}
	tb.header("NAME", "HEALTH", "AGE")
	tb.row(plain("größe"), cell{"ready", green}, plain("1s"))
	tb.row(plain("a"), plain(""), plain("12s"))
	tb.row(plain("評価"), plain("ready"), plain("2s"))
	var got bytes.Buffer
	tb.write(&got, false)
	if diff := cmp.Diff("NAME   HEALTH  AGE\ngröße  ready   1s\na              12s\n評価   ready   2s\n", got.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	var colored bytes.Buffer
	tb.write(&colored, true)
	if !strings.Contains(colored.String(), "\x1b[32mready\x1b[0m   1s") {
		t.Errorf("colours move the columns: %q", colored.String())
	}
}

func TestDiagnosticHasPlaceCauseAndFix(t *testing.T) {
	d := model.Diagnostic{Code: "MALHA0101", Severity: model.Error, Path: "spec.http[0]", Message: "no such subset", Hint: "did you mean v2?",
		Origin: ident.Origin{Kind: "VirtualService", Namespace: "default", Name: "reviews", File: "/elsewhere/r.yaml", Line: 7}}
	want := "/elsewhere/r.yaml:7: error MALHA0101: VirtualService default/reviews spec.http[0]: no such subset\n    fix: did you mean v2?\n"
	if diff := cmp.Diff(want, renderDiagnostic(d, false)); diff != "" {
		t.Errorf("diagnostic (-want +got):\n%s", diff)
	}
}

func TestFindProxy(t *testing.T) {
	st := &local.Status{Proxies: []local.ProxyStatus{
		{Name: ident.Name{Namespace: "default", Name: "a"}}, {Name: ident.Name{Namespace: "prod", Name: "b"}},
		{Name: ident.Name{Namespace: "prod", Name: "c"}}, {Name: ident.Name{Namespace: "test", Name: "c"}},
	}}
	for arg, want := range map[string]string{"a": "default/a", "b": "prod/b", "test/c": "test/c"} {
		if p, err := findProxy(st, arg); err != nil || p.Name.String() != want {
			t.Errorf("findProxy(%q) = %v, %v; want %s", arg, p, err, want)
		}
	}
	for arg, want := range map[string]string{"c": "more than one", "z": "no workload", "tset/c": "did you mean test/c?", "a/b/c": "not a name"} {
		if _, err := findProxy(st, arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("findProxy(%q): %v, want %q", arg, err, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ms", 42 * time.Millisecond: "42ms", 90 * time.Second: "90s", 5 * time.Minute: "5m", 24 * time.Hour: "24h", 72 * time.Hour: "3d", -time.Second: "-1s",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %s, want %s", d, got, want)
		}
	}
}

func TestHelpFitsTheTerminal(t *testing.T) {
	want := "one two\nthree\n\n  kept as it is, however long\nfour five"
	if diff := cmp.Diff(want, wrap("one two three\n\n  kept as it is, however long\nfour\nfive", 10)); diff != "" {
		t.Errorf("wrap (-want +got):\n%s", diff)
	}
	s := &session{ui: newUI(io.Discard, io.Discard)}
	for _, c := range s.root().Commands() {
		out, _, code := malha(t, "", c.Name(), "--help")
		if code != 0 || !strings.Contains(out, "Usage:") {
			t.Errorf("malha %s --help: exit code %d", c.Name(), code)
		}
		for line := range strings.Lines(out) {
			if len(line) > 125 {
				t.Errorf("malha %s --help has a line of %d columns: %s", c.Name(), len(line), line)
			}
		}
	}
}

func TestStatusFailsWhenSomethingIsWrong(t *testing.T) {
	ready := func(change func(*local.Status)) *local.Status {
		st := &local.Status{Phase: local.Ready, Proxies: []local.ProxyStatus{{Sync: local.Synced, Health: local.HealthReady}},
			Workloads: []local.WorkloadStatus{{Sync: local.Synced, Health: local.HealthReady}}}
		change(st)
		return st
	}
	for what, c := range map[string]struct {
		change func(*local.Status)
		want   bool
	}{
		"nothing":              {func(*local.Status) {}, true},
		"a program starts":     {func(st *local.Status) { st.Workloads[0].Health = local.HealthStarting }, true},
		"a program crashes":    {func(st *local.Status) { st.Workloads[0].Health = local.HealthCrashing }, false},
		"a proxy crashes":      {func(st *local.Status) { st.Proxies[0].Health = local.HealthCrashing }, false},
		"a plan was refused":   {func(st *local.Status) { st.Proxies[0].Sync = local.SyncFailed }, false},
		"a folder with errors": {func(st *local.Status) { st.Diagnostics = []model.Diagnostic{{Severity: model.Error}} }, false},
	} {
		if got := healthy(ready(c.change)); got != c.want {
			t.Errorf("%s: healthy is %t", what, got)
		}
	}
}
