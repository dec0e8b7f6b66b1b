package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/app/local"
)

// echoVariable makes the test executable the program of a workload.
const echoVariable = "MALHA_TEST_ECHO"

func TestMain(m *testing.M) {
	if name := os.Getenv(echoVariable); name != "" {
		if err := echo(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if builds.dir != "" {
		_ = os.RemoveAll(builds.dir)
	}
	os.Exit(code)
}

// echo answers every request with its own name and what it got. /slow waits, /never for ever, /call?url= calls another service,
// /later?url= after a while.
func echo(name string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("slow request begins")
		ms, err := strconv.Atoi(r.FormValue("ms"))
		if err != nil {
			ms = 700
		}
		time.Sleep(time.Duration(ms) * time.Millisecond)
		fmt.Fprintln(w, name, "slow")
	})
	mux.HandleFunc("/later", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("slow request begins")
		time.Sleep(2 * time.Second) // longer than a sidecar that stops lets anybody in
		r.URL.Path = "/call"
		mux.ServeHTTP(w, r)
	})
	mux.HandleFunc("/never", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/call", func(w http.ResponseWriter, r *http.Request) {
		res, err := http.Get(r.FormValue("url")) // finds its sidecar by HTTP_PROXY
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s\n", name, r.Method, r.URL.Path, body)
	})
	return http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), mux)
}

// builds are the programs under test, built once.
var builds struct {
	once sync.Once
	dir  string
	err  error
}

func programs(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and starts the real programs")
	}
	builds.once.Do(func() {
		if builds.dir, builds.err = os.MkdirTemp("", "malha-test"); builds.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", builds.dir+"/", "./cmd/malha", "./cmd/malha-proxy", "./samples/bookinfo/...")
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			builds.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if builds.err != nil {
		t.Fatalf("building the programs: %v", builds.err)
	}
	return builds.dir
}

// mesh is a folder of manifests, a state directory and the command line over both.
type mesh struct {
	t             *testing.T
	bin           string
	folder, state string
}

func newMesh(t *testing.T, files map[string]string) *mesh {
	t.Helper()
	m := &mesh{t: t, bin: filepath.Join(programs(t), "malha"), folder: t.TempDir(), state: filepath.Join(t.TempDir(), "state")}
	for name, text := range files {
		m.write(name, text)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if b, err := os.ReadFile(filepath.Join(m.state, "mesh.log")); err == nil {
				t.Logf("mesh.log:\n%s", b)
			}
			out, _, _ := m.run("", "status")
			t.Logf("status:\n%s", out)
		}
		m.run("", "down")
		m.noneLeft()
	})
	return m
}

func (m *mesh) write(name, text string) {
	m.t.Helper()
	text = strings.ReplaceAll(text, "@PROGRAM@", os.Args[0])
	// As editors do: a file that is written in place is empty for a moment, which on a busy machine is long enough to count.
	file := filepath.Join(m.folder, name)
	if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o600), os.Rename(file+".new", file)); err != nil {
		m.t.Fatal(err)
	}
}

// run runs malha with standard input, and returns what it wrote and its exit code.
func (m *mesh) run(stdin string, args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	cmd := exec.Command(m.bin, append([]string{"--state", m.state}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("malha %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs malha and fails the test when it does not exit with 0; it returns standard output.
func (m *mesh) must(args ...string) string {
	m.t.Helper()
	out, errs, code := m.run("", args...)
	if code != 0 {
		m.t.Fatalf("malha %s exited with %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// fails runs malha, which must exit with 1 and say each of wants on standard error.
func (m *mesh) fails(stdin string, wants []string, args ...string) {
	m.t.Helper()
	out, errs, code := m.run(stdin, args...)
	if code != 1 {
		m.t.Errorf("malha %s exited with %d, want 1\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	for _, want := range wants {
		if !strings.Contains(errs, want) {
			m.t.Errorf("malha %s does not say %q:\n%s", strings.Join(args, " "), want, errs)
		}
	}
}

func (m *mesh) up(args ...string) string {
	m.t.Helper()
	return m.must(append([]string{"up", "-d", "-f", m.folder, "--gateway-port", "0"}, args...)...)
}

func (m *mesh) status() *local.Status {
	m.t.Helper()
	out, errs, _ := m.run("", "status", "-o", "json")
	st := new(local.Status)
	if err := json.Unmarshal([]byte(out), st); err != nil {
		m.t.Fatalf("status: %v\n%s", err, errs)
	}
	return st
}

func (m *mesh) gateway() string {
	m.t.Helper()
	return strings.TrimSpace(m.must("url", "gateway"))
}

// eventually asks until ok, for at most a minute.
func (m *mesh) eventually(what string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	m.t.Errorf("never happened: %s", what)
}

// left returns the processes that belong to this mesh: its state directory, or its folder's program with its name, is in
// their command line or environment.
func (m *mesh) left() []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if d == "/proc/"+strconv.Itoa(os.Getpid()) {
			continue
		}
		cmd, _ := os.ReadFile(d + "/cmdline")
		env, _ := os.ReadFile(d + "/environ")
		if bytes.Contains(cmd, []byte(m.state)) || bytes.Contains(env, []byte("MESH_UNDER_TEST="+m.folder)) {
			found = append(found, filepath.Base(d)+" "+string(bytes.ReplaceAll(cmd, []byte{0}, []byte(" "))))
		}
	}
	return found
}

func (m *mesh) noneLeft() {
	m.t.Helper()
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		return
	}
	m.eventually("no process of the mesh is left", func() bool { return len(m.left()) == 0 })
	if l := m.left(); len(l) > 0 {
		m.t.Errorf("left behind:\n%s", strings.Join(l, "\n"))
	}
}

func get(url string) (int, string, error) {
	res, err := http.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

func workload(name, app, version, folder string) string {
	return fmt.Sprintf(`apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: %s, labels: {app: %s, version: %s}}
spec:
  serviceAccount: %s
  ports: [{name: http, port: 8000}]
  run:
    command: [@PROGRAM@, --listen, "$(PORT_HTTP)"]
    env: [{name: %s, value: %s}, {name: MESH_UNDER_TEST, value: %q}]
---
`, name, app, version, app, echoVariable, name, folder)
}

func service(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {selector: {app: %s}, ports: [{name: http, port: 80, targetPort: http}]}\n---\n", name, name)
}

const gateway = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: door}
spec:
  hosts: ["*"]
  gateways: [door]
  http: [{route: [{destination: {host: web, port: {number: 80}}}]}]
`

func rule(subset string) string {
	return `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: back}
spec:
  hosts: [back]
  http: [{route: [{destination: {host: back, subset: ` + subset + `}}]}]
`
}

// standard is a web workload that calls two versions of a back service.
func (m *mesh) standard() {
	m.write("web.yaml", service("web")+workload("web-1", "web", "v1", m.folder))
	m.write("back.yaml", service("back")+workload("back-v1", "back", "v1", m.folder)+workload("back-v2", "back", "v2", m.folder)+
		"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: back}\nspec: {host: back, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}\n")
	m.write("door.yaml", gateway)
}

func TestUpAndDown(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.standard()
	table := m.up()
	for _, want := range []string{"WORKLOAD", "default/web-1", "default/back-v2", "v2", "SYNCED", "ready", "http://127.0.0.1:"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table of `malha up` has no %q:\n%s", want, table)
		}
	}

	t.Run("a second up", func(t *testing.T) {
		m.fails("", []string{"already running", "malha down", "--state"}, "up", "-f", m.folder)
	})
	t.Run("gateway", func(t *testing.T) {
		if code, body, err := get(m.gateway() + "/x"); err != nil || code != 200 || body != "web-1 GET /x \n" {
			t.Errorf("%d %q %v", code, body, err)
		}
	})
	t.Run("a program reaches others by name", func(t *testing.T) {
		code, body, err := get(m.gateway() + "/call?url=http://back/deep")
		if err != nil || code != 200 || !strings.HasPrefix(body, "back-v") {
			t.Errorf("%d %q %v", code, body, err)
		}
	})
	t.Run("curl", func(t *testing.T) {
		if out := m.must("curl", "--from", "web-1", "-d", "a", "-d", "b", "http://back/p"); !strings.HasSuffix(out, "POST /p a&b\n") {
			t.Errorf("curl -d printed %q", out)
		}
		if out := m.must("curl", "--from", "default/web-1", "-i", "-X", "PUT", "back:80/q"); !strings.HasPrefix(out, "HTTP/1.1 200 OK\n") || !strings.Contains(out, "PUT /q") {
			t.Errorf("curl -i printed %q", out)
		}
		out, errs, code := m.run("", "curl", "--from", "web-1", "-v", "http://back/v")
		if code != 0 || !strings.HasPrefix(out, "back-v") || !strings.Contains(errs, "route") || !strings.Contains(errs, "200") {
			t.Errorf("curl -v: %d\n%s%s", code, out, errs)
		}
		if _, errs, code := m.run("", "curl", "--from", "nobody", "http://back/"); code != 1 || !strings.Contains(errs, "no workload") {
			t.Errorf("curl --from nobody: %d %s", code, errs)
		}
		if _, _, code := m.run("", "curl", "--from", "web-1", "-m", "100ms", "http://back/never"); code != 28 {
			t.Errorf("curl that takes too long exited with %d, want 28", code)
		}
	})
	t.Run("a request id without access logs", func(t *testing.T) {
		m.fails("", []string{"no access log"}, "explain", "nobody-asked")
	})
	t.Run("apply and delete", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "rule.yaml")
		if err := os.WriteFile(file, []byte(rule("v2")), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := m.must("apply", "-f", file); out != "virtualservice/back created\n" {
			t.Errorf("apply printed %q", out)
		}
		for range 10 {
			if out := m.must("curl", "--from", "web-1", "http://back/"); !strings.HasPrefix(out, "back-v2 ") {
				t.Fatalf("%q answered, want only v2", out)
			}
		}
		if out := m.must("apply", "-f", file); out != "virtualservice/back unchanged\n" {
			t.Errorf("the second apply printed %q", out)
		}
		m.fails(rule("v9"), []string{"v9", "nothing was changed"}, "apply", "-f", "-")
		m.fails("kind: Nonsense\napiVersion: v1\nmetadata: {name: x}\n", []string{"Nonsense", "stdin:1"}, "apply", "-f", "-")
		m.fails("a: [\n", []string{"stdin"}, "apply", "-f", "-")
		if out := m.must("get", "vs", "back", "-o", "yaml"); !strings.Contains(out, "v2") {
			t.Errorf("get printed %q", out)
		}
		if out := m.must("get", "virtualservices"); !strings.Contains(out, "applied") || !strings.Contains(out, "door.yaml:") {
			t.Errorf("get printed %q", out)
		}
		if out := m.must("get", "wl"); !strings.Contains(out, "back-v1") || !strings.Contains(out, "http:8000") {
			t.Errorf("get wl printed %q", out)
		}
		if out := m.must("delete", "-f", file); out != "virtualservice/back deleted\n" {
			t.Errorf("delete printed %q", out)
		}
		m.fails("", []string{"not in the mesh"}, "delete", "-f", file)
		m.fails("", []string{"door.yaml:", "delete it there"}, "delete", "-f", filepath.Join(m.folder, "door.yaml"))
	})
	t.Run("edits", func(t *testing.T) {
		m.write("rule.yaml", rule("v1"))
		only := func(want string) func() bool {
			return func() bool {
				for range 5 {
					if out, _, _ := m.run("", "curl", "--from", "web-1", "http://back/"); !strings.HasPrefix(out, want) {
						return false
					}
				}
				return true
			}
		}
		m.eventually("the edit is in force", only("back-v1 "))
		m.write("rule.yaml", rule("v7"))
		m.write("beside.yaml", service("beside")) // what is right comes into force beside it
		m.eventually("the broken edit is told", func() bool {
			for _, d := range m.status().Diagnostics {
				if strings.HasSuffix(d.Origin.File, "rule.yaml") && d.Severity == "error" {
					return true
				}
			}
			return false
		})
		if !only("back-v1 ")() {
			t.Error("a broken edit changed the routing")
		}
		m.eventually("the edit beside it is in force", func() bool { return strings.Contains(m.must("get", "svc"), "beside") })
		if _, _, code := m.run("", "status"); code != 1 {
			t.Errorf("status exits with %d while the folder has an error", code)
		}
		// It is not in the way of what has nothing to do with it.
		if out, errs, code := m.run(service("other"), "apply", "-f", "-"); code != 0 || out != "service/other created\n" {
			t.Errorf("apply exits with %d: %s%s", code, out, errs)
		}
		if _, errs, code := m.run(service("other"), "delete", "-f", "-"); code != 0 {
			t.Errorf("delete exits with %d: %s", code, errs)
		}
		if err := os.Remove(filepath.Join(m.folder, "beside.yaml")); err != nil {
			t.Fatal(err)
		}
		m.write("rule.yaml", rule("v2"))
		m.eventually("the corrected edit is in force", only("back-v2 "))
	})
	t.Run("a killed program is started again", func(t *testing.T) {
		st := m.status()
		for _, w := range st.Workloads {
			if w.Name.Name == "back-v2" {
				if err := syscall.Kill(w.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.eventually("back-v2 is ready again", func() bool {
			for _, w := range m.status().Workloads {
				if w.Name.Name == "back-v2" {
					return w.Restarts == 1 && w.Health == local.HealthReady
				}
			}
			return false
		})
	})
	t.Run("metrics", func(t *testing.T) {
		_, page, err := get(strings.TrimSpace(m.must("url", "metrics")))
		if err != nil || !strings.Contains(page, `istio_requests_total{proxy="default/web-1",`) || strings.Count(page, "# TYPE istio_requests_total ") != 1 {
			t.Errorf("%v\n%.2000s", err, page)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if _, _, err := get(m.gateway() + "/slow"); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"web-1"}, {"-n", "default", "web-1"}, {"-n", "other", "default/web-1"}} {
			if out := m.must(append([]string{"logs"}, args...)...); !strings.Contains(out, "slow request begins") {
				t.Errorf("logs %v printed %q", args, out)
			}
		}
		if _, err, code := m.run("", "logs", "-n", "other", "web-1"); code == 0 || !strings.Contains(err, `no workload "other/web-1"`) {
			t.Errorf("logs of a namespace without it: %d, %s", code, err)
		}
	})
	t.Run("a workload comes and goes", func(t *testing.T) {
		m.write("more.yaml", service("more")+workload("more-1", "more", "v1", m.folder))
		m.eventually("the new workload answers", func() bool {
			out, _, _ := m.run("", "curl", "--from", "web-1", "http://more/")
			return strings.HasPrefix(out, "more-1 ")
		})
		if err := os.Remove(filepath.Join(m.folder, "more.yaml")); err != nil {
			t.Fatal(err)
		}
		m.eventually("the workload is gone", func() bool { return len(m.status().Workloads) == 3 })
	})
	t.Run("down finishes what is in flight", func(t *testing.T) {
		url := m.gateway() + "/call?url=http://web/slow"
		type answer struct {
			code int
			err  error
		}
		got := make(chan answer)
		before := strings.Count(m.must("logs", "web-1"), "slow request begins")
		go func() {
			code, _, err := get(url)
			got <- answer{code, err}
		}()
		m.eventually("the slow request has begun", func() bool {
			return strings.Count(m.must("logs", "web-1"), "slow request begins") > before
		})
		m.must("down")
		if a := <-got; a.err != nil || a.code != 200 {
			t.Errorf("the request in flight came to %d %v", a.code, a.err)
		}
		m.noneLeft()
		m.must("down") // nothing to stop is no error
	})
}

func TestKilledMesh(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil)
	m.standard()
	m.up()
	m.run(rule("v2"), "apply", "-f", "-")
	if err := syscall.Kill(m.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.noneLeft()
	m.eventually("status says that no mesh runs", func() bool {
		_, errs, code := m.run("", "status")
		return code == 1 && strings.Contains(errs, "no mesh is running") && strings.Contains(errs, "malha up")
	})
	m.up("--cert-ttl", "1h")
	for _, p := range m.status().Proxies {
		if left := time.Until(p.CertExpires); left > 2*time.Hour {
			t.Errorf("%s has a certificate for %s, of the mesh before", p.Name, left)
		}
	}
	if out := m.must("get", "vs", "back", "-o", "json"); !strings.Contains(out, `"v2"`) {
		t.Errorf("what was applied did not survive the crash: %s", out)
	}
}

func TestUpRefuses(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	for _, c := range []struct {
		name  string
		files func(folder string) map[string]string
		args  []string
		wants []string
	}{
		{"a port in use", func(f string) map[string]string {
			return map[string]string{"door.yaml": gateway, "web.yaml": service("web") + workload("web-1", "web", "v1", f)}
		}, []string{"--gateway-port", port}, []string{"port " + port + " is in use", "--gateway-port"}},
		{"a command that does not exist", func(f string) map[string]string {
			return map[string]string{"web.yaml": strings.ReplaceAll(workload("web-1", "web", "v1", f), "@PROGRAM@", "./nowhere")}
		}, nil, []string{"web.yaml:", "nowhere does not exist"}},
		{"a command that keeps crashing", func(f string) map[string]string {
			return map[string]string{"web.yaml": strings.ReplaceAll(workload("web-1", "web", "v1", f), "[@PROGRAM@,", `[/bin/sh, -c, "echo out of luck >&2; exit 7",`)}
		}, nil, []string{"keeps crashing", "exit status 7", "out of luck", "web.yaml:"}},
		{"errors in the folder", func(f string) map[string]string {
			return map[string]string{"web.yaml": workload("web-1", "web", "v1", f) + "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {prots: []}\n"}
		}, nil, []string{"web.yaml:", "prots", "1 error"}},
		{"a folder without workloads", func(string) map[string]string {
			return map[string]string{"svc.yaml": service("web")}
		}, nil, []string{"no Workload in", "kind: Workload"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMesh(t, nil)
			for name, text := range c.files(m.folder) {
				m.write(name, text)
			}
			m.fails("", c.wants, append([]string{"up", "-d", "-f", m.folder}, c.args...)...)
			m.noneLeft()
		})
	}
}
