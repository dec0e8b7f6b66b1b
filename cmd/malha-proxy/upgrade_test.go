package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/testport"
)

// builds are the programs under test, built once.
var builds struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if builds.dir != "" {
		_ = os.RemoveAll(builds.dir)
	}
	os.Exit(code)
}

// build returns the program under test.
func build(t *testing.T) string { return buildOf(t, "malha-proxy") }

func buildOf(t *testing.T, program string) string {
	t.Helper()
	builds.once.Do(func() {
		if builds.dir, builds.err = os.MkdirTemp("", "malha-proxy-test"); builds.err != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-ldflags", "-s -w -X main.version=v0.0.0-test", "-o", builds.dir+"/", ".", "../malhad").CombinedOutput(); err != nil {
			builds.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if builds.err != nil {
		t.Fatalf("building the programs: %v", builds.err)
	}
	return filepath.Join(builds.dir, program)
}

// doors is a plan with one listener for each origin, by name.
type door struct {
	name     string
	port     int
	protocol ident.Protocol
	origin   string
}

func doors(ds ...door) *plan.Plan {
	p := &plan.Plan{Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "a"}, Role: plan.Sidecar}}
	for _, d := range ds {
		p.Listeners = append(p.Listeners, plan.Listener{Name: d.name, Bind: fmt.Sprintf("127.0.0.1:%d", d.port),
			Direction: plan.Outbound, Protocol: d.protocol, Routes: d.name})
		p.Routes = append(p.Routes, plan.RouteTable{Name: d.name, Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"},
			Routes: []plan.Route{{Name: "all", Forward: []plan.Destination{{Cluster: d.name, Weight: 1}}}}}}})
		p.Clusters = append(p.Clusters, plan.Cluster{Name: d.name, Host: d.name, Port: 80, Protocol: d.protocol})
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: d.name, Endpoints: []plan.Endpoint{{Address: d.origin}}})
	}
	return p
}

func writePlan(t *testing.T, p *plan.Plan) string {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a proxy that runs. Its log lines can be waited for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, after done

	mu   sync.Mutex
	log  bytes.Buffer
	line *sync.Cond
	over bool
}

func run1(t *testing.T, program string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.line = sync.NewCond(&p.mu)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.line.Broadcast()
			p.mu.Unlock()
		}
		p.err = p.cmd.Wait()
		p.mu.Lock()
		p.over = true
		p.line.Broadcast()
		p.mu.Unlock()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// says waits for a line with text.
func (p *process) says(t *testing.T, text string) {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { t.Errorf("the proxy does not say %q:\n%s", text, p.dump()) })
	defer late.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !strings.Contains(p.log.String(), text) {
		if p.over {
			t.Fatalf("the proxy ended without saying %q:\n%s", text, p.log.String())
		}
		p.line.Wait()
	}
}

// ends waits for an orderly end.
func (p *process) ends(t *testing.T) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatalf("the proxy (pid %d) does not end:\n%s", p.cmd.Process.Pid, p.output())
	}
	if p.err != nil || !strings.Contains(p.output(), "proxy has ended") {
		t.Fatalf("the proxy did not end in order: %v\n%s", p.err, p.output())
	}
}

// dump ends a process that hangs, and returns what its goroutines did.
func (p *process) dump() string {
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
	}
	return p.output()
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// load is clients that count what fails.
type load struct {
	t      *testing.T
	over   atomic.Bool
	wg     sync.WaitGroup
	failed atomic.Int64
	done   map[string]*atomic.Int64
}

func (l *load) start(kind string, workers int, client func(w int, ok func()) error) {
	n := &atomic.Int64{}
	l.done[kind] = n
	for w := range workers {
		l.wg.Go(func() {
			for !l.over.Load() {
				if err := client(w, func() { n.Add(1) }); err != nil {
					l.failed.Add(1)
					l.t.Errorf("%s: a request failed after %d that did not: %v", kind, n.Load(), err)
					return
				}
			}
		})
	}
}

func (l *load) stop() {
	l.over.Store(true)
	l.wg.Wait()
}

// http1 uses one connection until it is told that it ends, and tries nothing twice.
func (l *load) http1(addr string, ok func()) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for i := 0; !l.over.Load(); i++ {
		body := strings.Repeat("x", i%5*1000)
		_ = c.SetDeadline(time.Now().Add(time.Minute)) // for this request: a connection lasts as long as nobody ends it
		if _, err := fmt.Fprintf(c, "POST /%d HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body); err != nil {
			return fmt.Errorf("request %d of a connection: %w", i, err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("request %d of a connection: %w", i, err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || string(got) != body {
			return fmt.Errorf("request %d of a connection: status %d, %d bytes for %d: %w", i, resp.StatusCode, len(got), len(body), err)
		}
		ok()
		if resp.Close {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func h2c() *http.Transport {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	return tr
}

func http2(tr *http.Transport, addr string, ok func()) error {
	const body = "twelve bytes"
	req, err := http.NewRequest("POST", "http://"+addr+"/", strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || string(got) != body {
		return fmt.Errorf("status %d, %q: %w", resp.StatusCode, got, err)
	}
	ok()
	time.Sleep(time.Millisecond)
	return nil
}

// grpcStream is one bidirectional stream of messages (length-prefixed, as the gRPC protocol has them), which is answered
// message by message and ends with a status in the trailers.
func grpcStream(tr *http.Transport, addr string, messages int, ok func()) error {
	pr, pw := io.Pipe()
	req, err := http.NewRequest("POST", "http://"+addr+"/echo.Echo/Stream", pr)
	if err != nil {
		return err
	}
	req.Header.Set("content-type", "application/grpc")
	req.Header.Set("te", "trailers")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	for i := range messages {
		m := binary.BigEndian.AppendUint32([]byte{0}, 4)
		m = binary.BigEndian.AppendUint32(m, uint32(i))
		if _, err := pw.Write(m); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		got := make([]byte, len(m))
		if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, m) {
			return fmt.Errorf("message %d: %x for %x: %w", i, got, m, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = pw.Close()
	rest, err := io.ReadAll(resp.Body)
	if err != nil || len(rest) > 0 || resp.Trailer.Get("grpc-status") != "0" {
		return fmt.Errorf("at the end: %d bytes, trailers %v: %w", len(rest), resp.Trailer, err)
	}
	ok()
	return nil
}

func echo(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("content-type") != "application/grpc" {
		b, err := io.ReadAll(r.Body)
		if err == nil {
			_, _ = w.Write(b)
		}
		return
	}
	w.Header().Set("content-type", "application/grpc")
	w.Header().Set("trailer", "grpc-status")
	w.WriteHeader(200)
	f := w.(http.Flusher)
	f.Flush()
	b := make([]byte, 1024)
	for {
		n, err := r.Body.Read(b)
		_, _ = w.Write(b[:n])
		f.Flush()
		if err != nil {
			if errors.Is(err, io.EOF) {
				w.Header().Set("grpc-status", "0")
			}
			return
		}
	}
}

// TestUpgrade replaces the proxy again and again under load; no request may fail. MALHA_UPGRADES says how often.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	upgrades := 5
	if s := os.Getenv("MALHA_UPGRADES"); s != "" {
		var err error
		if upgrades, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	program := build(t)
	web := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(web.Close)
	rpc := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	rpc.Config.Protocols = new(http.Protocols)
	rpc.Config.Protocols.SetUnencryptedHTTP2(true)
	rpc.Start()
	t.Cleanup(rpc.Close)

	webPort, rpcPort := testport.Reserve(t), testport.Reserve(t)
	webAddr, rpcAddr := fmt.Sprintf("127.0.0.1:%d", webPort), fmt.Sprintf("127.0.0.1:%d", rpcPort)
	admin := testport.Address(t)
	args := []string{"--plan", writePlan(t, doors(
		door{"web", webPort, ident.HTTP, strings.TrimPrefix(web.URL, "http://")},
		door{"rpc", rpcPort, ident.GRPC, strings.TrimPrefix(rpc.URL, "http://")})),
		"--state", filepath.Join(t.TempDir(), "state"), "--admin", admin, "--drain-timeout", "40s"}
	current := run1(t, program, args...)
	current.says(t, "plan is in force")

	l := &load{t: t, done: map[string]*atomic.Int64{}}
	defer l.stop()
	l.start("HTTP/1.1", 4, func(_ int, ok func()) error { return l.http1(webAddr, ok) })
	unary, streams := h2c(), h2c()
	defer unary.CloseIdleConnections()
	defer streams.CloseIdleConnections()
	l.start("HTTP/2", 4, func(_ int, ok func()) error { return http2(unary, rpcAddr, ok) })
	l.start("gRPC streams", 4, func(w int, ok func()) error { return grpcStream(streams, rpcAddr, 20+10*w, ok) })
	l.start("admin", 1, func(_ int, ok func()) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+admin+"/healthz/ready", nil)
		if err != nil {
			return err
		}
		req.Close = true
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 200 {
			return fmt.Errorf("the admin port says %d", resp.StatusCode)
		}
		ok()
		time.Sleep(10 * time.Millisecond)
		return nil
	})

	for i := range upgrades {
		before := map[string]int64{}
		for kind, n := range l.done {
			before[kind] = n.Load()
		}
		next := run1(t, program, args...)
		next.says(t, "took over")
		current.ends(t)
		current = next
		if l.failed.Load() > 0 {
			t.Fatalf("upgrade %d", i+1)
		}
		for kind, n := range l.done { // none stands still
			for end := time.Now().Add(time.Minute); kind != "admin" && n.Load() == before[kind] && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	l.stop()
	for kind, n := range l.done {
		if n.Load() < int64(upgrades) {
			t.Errorf("only %d of %s: no load", n.Load(), kind)
		}
		t.Logf("%s: %d done, 0 failed over %d upgrades", kind, n.Load(), upgrades)
	}
	if err := current.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	current.ends(t)
}

// TestUpgradeFails: a new process that can't serve leaves the old one as it is.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	program := build(t)
	web := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(web.Close)
	port := testport.Reserve(t)
	addr := strings.TrimPrefix(web.URL, "http://")
	state := t.TempDir()
	good := []string{"--plan", writePlan(t, doors(door{"web", port, ident.HTTP, addr})), "--state", state, "--admin", ""}
	old := run1(t, program, good...)
	old.says(t, "plan is in force")
	works := func() {
		t.Helper()
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/", port), "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
	}
	works()

	// A plan that is refused, and one that needs an identity which is not there.
	bad := doors(door{"web", port, ident.HTTP, addr})
	bad.Listeners[0].Routes = "missing"
	strict := doors(door{"web", port, ident.HTTP, addr})
	strict.Clusters[0].TLS = plan.TLSMutual
	for _, tc := range []struct {
		plan *plan.Plan
		want string
	}{{bad, "is not in the plan"}, {strict, "the one that runs goes on"}} {
		p := run1(t, program, "--plan", writePlan(t, tc.plan), "--state", state, "--admin", "")
		<-p.done
		if exit := (*exec.ExitError)(nil); !errors.As(p.err, &exit) || exit.ExitCode() != 1 || !strings.Contains(p.output(), tc.want) {
			t.Errorf("it ended with %v, want exit code 1 and %q:\n%s", p.err, tc.want, p.output())
		}
		works()
	}

	// A listener that the new plan does not have is closed once the old one is gone, another one is opened.
	other := testport.Reserve(t)
	next := run1(t, program, "--plan", writePlan(t, doors(door{"other", other, ident.HTTP, addr})), "--state", state, "--admin", "")
	next.says(t, "took over")
	old.ends(t)
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		_ = c.Close()
		t.Error("a listener that nobody needs is still open")
	}
	port = other
	works()

	// SIGKILL leaves a stale socket behind, which is in nobody's way.
	_ = next.cmd.Process.Kill()
	<-next.done
	again := run1(t, program, "--plan", writePlan(t, doors(door{"other", other, ident.HTTP, addr})), "--state", state, "--admin", "")
	again.says(t, "plan is in force")
	works()
}

// TestUpgradeFromControlPlane: the plan and the identity come from the control plane, or from the state folder that both
// processes share. Two new ones at once take over one after the other.
func TestUpgradeFromControlPlane(t *testing.T) {
	t.Parallel()
	program, plane := build(t), buildOf(t, "malhad")
	config, state, mine := t.TempDir(), t.TempDir(), t.TempDir()
	manifests := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {app: web}
  ports: [{name: http, port: %[1]d}]
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  ports: [{name: http, port: %[1]d}]
  address: 127.0.0.1
`, testport.Reserve(t))
	if err := os.WriteFile(filepath.Join(config, "web.yaml"), []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	control, admin := testport.Address(t), testport.Address(t)
	run1(t, plane, "--config", config, "--state", state, "--listen", control).says(t, "msg=serving")
	args := []string{"--control", control, "--node", "default/web", "--roots", filepath.Join(state, "ca", "root.pem"),
		"--token", filepath.Join(state, "tokens", "default", "web"), "--state", mine, "--admin", admin, "--drain-timeout", "5s"}
	first := run1(t, program, args...)
	first.says(t, "plan is in force")

	second, third := run1(t, program, args...), run1(t, program, args...)
	first.ends(t)
	second.says(t, "took over")
	third.says(t, "took over")
	last := second
	select {
	case <-second.done:
		second.ends(t)
		last = third
	case <-third.done:
		third.ends(t)
	case <-time.After(time.Minute):
		t.Fatal("both of them run")
	}
	last.says(t, "connected to the control plane")
	resp, err := http.Get("http://" + admin + "/healthz/ready")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("the last one says %s", resp.Status)
	}
}
