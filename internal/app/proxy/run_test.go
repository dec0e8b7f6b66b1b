package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/testport"
)

// output is a writer that a test reads while the proxy writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// wait asks until f is true. The proxy runs in real time here: it owns sockets.
func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// reviewsPlan sends everything on a local port to one address.
func reviewsPlan(port int, address, route string) *plan.Plan {
	service := plan.ServiceLabels{Host: "reviews.default.svc.cluster.local", Name: "reviews", Namespace: "default"}
	cluster := "outbound|9080||reviews.default.svc.cluster.local"
	return &plan.Plan{
		Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "productpage-v1"}, Role: plan.Sidecar, Workload: plan.WorkloadLabels{Workload: "productpage-v1", Namespace: "default"}},
		Listeners: []plan.Listener{{
			Name: "reviews", Bind: fmt.Sprintf("127.0.0.1:%d", port), Direction: plan.Outbound, Protocol: ident.HTTP, Routes: "9080",
			Host: service.Host, Port: 9080,
		}},
		Routes: []plan.RouteTable{{Name: "9080", Hosts: []plan.VirtualHost{{
			Name: service.Host + ":9080", Domains: []string{service.Host}, Service: service,
			Routes: []plan.Route{{Name: route, Forward: []plan.Destination{{Cluster: cluster, Weight: 1}}, Origin: ident.Origin{Kind: "VirtualService", Namespace: "default", Name: "reviews", Rule: "http[0]"}}},
		}}}},
		Clusters:  []plan.Cluster{{Name: cluster, Host: service.Host, Port: 9080, Protocol: ident.HTTP, Service: service}},
		Endpoints: []plan.Endpoints{{Cluster: cluster, Endpoints: []plan.Endpoint{{Address: address, Workload: plan.WorkloadLabels{Workload: "reviews-v1", Namespace: "default"}}}}},
	}
}

func writePlan(t *testing.T, path string, p *plan.Plan) {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// running is a proxy that runs in the test.
type running struct {
	admin  string
	stderr output
	reload chan os.Signal
	stop   context.CancelFunc
	done   chan error
}

var adminLine = regexp.MustCompile(`port is open" port=admin addr=(\S+)`)

func start(t *testing.T, args ...string) *running {
	t.Helper()
	c, err := Parse(append([]string{"--admin", "127.0.0.1:0", "--drain-timeout", "1m"}, args...), env(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{reload: make(chan os.Signal), done: make(chan error, 1)}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() {
		r.done <- Run(ctx, Options{Config: c, Version: "test", Getenv: env("GOGC", "100", "GOMAXPROCS", "2"), Stdout: io.Discard, Stderr: &r.stderr, Reload: r.reload})
	}()
	t.Cleanup(r.stop)
	wait(t, "the admin port", func() bool {
		if m := adminLine.FindStringSubmatch(r.stderr.String()); m != nil {
			r.admin = m[1]
		}
		return r.admin != ""
	})
	return r
}

func get(url string) (int, string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	res, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

func (r *running) ready(t *testing.T) {
	t.Helper()
	wait(t, "readiness", func() bool {
		status, _, err := get("http://" + r.admin + "/healthz/ready")
		return err == nil && status == 200
	})
}

func TestRunFromAPlan(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s", r.Host, r.URL)
	}))
	defer backend.Close()
	dir, port := t.TempDir(), testport.Reserve(t)
	file, lines := filepath.Join(dir, "plan.json"), filepath.Join(dir, "access.log")
	writePlan(t, file, reviewsPlan(port, backend.Listener.Addr().String(), "default"))
	r := start(t, "--plan", file, "--access-log", lines)
	r.ready(t)

	url := fmt.Sprintf("http://127.0.0.1:%d/reviews/0?a=1", port)
	if status, body, err := get(url); err != nil || status != http.StatusOK || body != "reviews.default.svc.cluster.local:9080 /reviews/0?a=1" {
		t.Fatalf("%d %q %v", status, body, err)
	}
	var metrics string
	wait(t, "the request to be counted, a moment after its answer", func() bool {
		status, body, err := get("http://" + r.admin + "/stats/prometheus")
		metrics = body
		return err == nil && status == http.StatusOK && strings.Contains(body, "istio_requests_total{")
	})
	for _, want := range []string{
		`istio_requests_total{reporter="source",source_workload="productpage-v1"`, `destination_workload="reviews-v1"`,
		`destination_service="reviews.default.svc.cluster.local"`, `malha_proxy_config_applied_total 1`,
		`malha_proxy_cluster_connections_total{cluster="outbound|9080||reviews.default.svc.cluster.local"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics do not have %s", want)
		}
	}

	// Another plan; then one that can't be read, and the one before stays.
	writePlan(t, file, reviewsPlan(port, backend.Listener.Addr().String(), "second"))
	r.reload <- syscall.SIGHUP
	wait(t, "the second plan", func() bool {
		_, dump, err := get("http://" + r.admin + "/config_dump")
		return err == nil && strings.Contains(dump, `"second"`)
	})
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.reload <- syscall.SIGHUP
	wait(t, "the refusal of the third plan", func() bool { return strings.Contains(r.stderr.String(), "was not reloaded") })
	if status, _, err := get(url); err != nil || status != http.StatusOK {
		t.Errorf("after a broken plan: %d %v", status, err)
	}

	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, _, err := get(url); err == nil {
		t.Error("the listener is still open")
	}
	b, err := os.ReadFile(lines)
	if err != nil {
		t.Fatal(err)
	}
	var routes []any
	for line := range strings.Lines(string(b)) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		routes = append(routes, l["route_name"])
		if l["path"] != "/reviews/0?a=1" || l["route_origin"] != "VirtualService/default/reviews http[0]" || l["response_flags"] != "-" {
			t.Errorf("access log: %s", line)
		}
	}
	if fmt.Sprint(routes) != "[default second]" {
		t.Errorf("access log has routes %v", routes)
	}
}

func TestDrainLetsRequestsFinish(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-answer
		_, _ = io.WriteString(w, "done")
	}))
	defer backend.Close()
	dir, port := t.TempDir(), testport.Reserve(t)
	file := filepath.Join(dir, "plan.json")
	writePlan(t, file, reviewsPlan(port, backend.Listener.Addr().String(), "default"))
	r := start(t, "--plan", file)
	r.ready(t)
	got := make(chan string, 1)
	go func() {
		_, body, err := get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		got <- fmt.Sprint(body, err)
	}()
	<-arrived
	r.stop()
	wait(t, "readiness to end", func() bool {
		status, body, err := get("http://" + r.admin + "/healthz/ready")
		return err == nil && status == 503 && strings.Contains(body, "draining")
	})
	close(answer)
	if s := <-got; s != "done<nil>" {
		t.Errorf("the open request got %q", s)
	}
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestNoTimeToDrain: --drain-timeout=0s is of listeners that a plan takes away, too.
func TestNoTimeToDrain(t *testing.T) {
	arrived := make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}))
	defer backend.Close()
	file, port := filepath.Join(t.TempDir(), "plan.json"), testport.Reserve(t)
	writePlan(t, file, reviewsPlan(port, backend.Listener.Addr().String(), "default"))
	r := start(t, "--plan", file, "--drain-timeout", "0s")
	r.ready(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // less than live.DefaultDrainTime
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		if err == nil {
			var res *http.Response
			if res, err = http.DefaultTransport.RoundTrip(req); err == nil {
				_ = res.Body.Close()
			}
		}
		ended <- err
	}()
	<-arrived
	writePlan(t, file, reviewsPlan(testport.Reserve(t), backend.Listener.Addr().String(), "default"))
	r.reload <- syscall.SIGHUP
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Errorf("the open request ended with %v; %v", err, ctx.Err())
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestQuitCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plan.json")
	writePlan(t, file, reviewsPlan(testport.Reserve(t), "127.0.0.1:1", "default"))
	r := start(t, "--plan", file)
	r.ready(t)
	res, err := http.Post("http://"+r.admin+"/quitquitquit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if err := <-r.done; err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%d, Run: %v", res.StatusCode, err)
	}
}

func TestRunRefusesToStart(t *testing.T) {
	dir, port := t.TempDir(), testport.Reserve(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	good, busy := filepath.Join(dir, "good.json"), filepath.Join(dir, "busy.json")
	writePlan(t, good, reviewsPlan(port, "127.0.0.1:1", "default"))
	writePlan(t, busy, reviewsPlan(taken.Addr().(*net.TCPAddr).Port, "127.0.0.1:1", "default"))
	for want, args := range map[string][]string{
		"can't be read":             {"--plan", filepath.Join(dir, "none.json"), "--admin", ""},
		"cert.pem":                  {"--plan", good, "--identity", dir, "--admin", ""},
		"choose another":            {"--plan", good, "--admin", taken.Addr().String()},
		"access log can't":          {"--plan", good, "--admin", "", "--access-log", dir},
		taken.Addr().String() + ":": {"--plan", busy, "--admin", ""},
	} {
		c, err := Parse(args, env(), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		err = Run(t.Context(), Options{Config: c, Getenv: env("GOGC", "100", "GOMAXPROCS", "2"), Stdout: io.Discard, Stderr: io.Discard})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one about %q", args, err, want)
		}
	}
}

func TestReadyNeedsAnIdentity(t *testing.T) {
	p := reviewsPlan(testport.Reserve(t), "127.0.0.1:1", "default")
	p.Endpoints[0].Endpoints[0].Identity = ident.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"}
	file := filepath.Join(t.TempDir(), "plan.json")
	writePlan(t, file, p)
	r := start(t, "--plan", file)
	wait(t, "the warning", func() bool { return strings.Contains(r.stderr.String(), "needs mutual TLS and there is no identity") })
	status, body, err := get("http://" + r.admin + "/healthz/ready")
	if err != nil || status != 503 || !strings.Contains(body, "spiffe://cluster.local/ns/default/sa/reviews") {
		t.Errorf("%d %q %v", status, body, err)
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}
