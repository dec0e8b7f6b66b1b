package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
)

type page string

func (p page) WriteTo(w io.Writer) (int64, error) {
	for i := 0; i < len(p); i += 1000 {
		if _, err := io.WriteString(w, string(p[i:min(i+1000, len(p))])); err != nil {
			return 0, err
		}
	}
	return int64(len(p)), nil
}

// serve runs a server and returns its address. It is stopped, and waited for, at the end of the test.
func serve(t *testing.T, o Options) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- New(o).Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return ln.Addr().String()
}

func ask(t *testing.T, method, url string, edit func(*http.Request)) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

func TestPages(t *testing.T) {
	var notReady error
	level := new(slog.LevelVar)
	drained, quit := 0, 0
	long := page(strings.Repeat("metric 1\n", 20_000))
	key := []byte("private key bytes")
	p := &plan.Plan{Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "a"}}, Secrets: []plan.Secret{{Name: "default/web", Key: key}}}
	addr := serve(t, Options{
		Ready: func() error { return notReady }, Metrics: long, Plan: func() *plan.Plan { return p }, Clusters: func() any { return []string{"c"} },
		Certs: trust.Static{}, Level: level, Drain: func() { drained++ }, Quit: func() { quit++ }, Version: "v1",
	})
	for _, tc := range []struct {
		method, path string
		status       int
		body         string // part of it
	}{
		{"GET", "/", 200, "/config_dump"},
		{"GET", "/healthz/live", 200, "live\n"},
		{"GET", "/healthz/ready", 200, "ready\n"},
		{"GET", "/stats/prometheus", 200, string(long)},
		{"GET", "/metrics", 200, string(long)},
		{"HEAD", "/metrics", 200, ""},
		{"HEAD", "/healthz/live", 200, ""},
		{"GET", "/clusters", 200, `"c"`},
		{"GET", "/server_info", 200, `"v1"`},
		{"GET", "/certs", 404, "no certificate yet"},
		{"GET", "/nothing", 404, "no such page"},
		{"GET", "/drain", 405, "use POST"},
		{"POST", "/metrics", 405, "use GET"},
		{"POST", "/logging?level=debug", 200, "DEBUG"},
		{"POST", "/logging?level=loud", 400, "want ?level="},
		{"POST", "/drain", 200, "draining"},
		{"POST", "/quitquitquit", 200, "exiting"},
	} {
		status, body, _ := ask(t, tc.method, "http://"+addr+tc.path, nil)
		if status != tc.status || !strings.Contains(body, tc.body) || tc.method == "HEAD" && body != "" {
			t.Errorf("%s %s: %d with %d bytes, want %d; starts %.80q", tc.method, tc.path, status, len(body), tc.status, body)
		}
	}
	if drained != 1 || quit != 1 || level.Level() != slog.LevelDebug {
		t.Errorf("drained %d, quit %d, level %v", drained, quit, level)
	}
	_, body, header := ask(t, "GET", "http://"+addr+"/config_dump", nil)
	var got plan.Plan
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Node.Name != p.Node.Name || header.Get("Content-Type") != "application/json" {
		t.Errorf("config_dump: %v %v %v", err, got, header)
	}
	if strings.Contains(body, base64.StdEncoding.EncodeToString(key)) || strings.Contains(body, string(key)) {
		t.Error("config_dump shows a private key")
	}
	if string(p.Secrets[0].Key) != string(key) || len(got.Secrets) != 1 || got.Secrets[0].Name != "default/web" {
		t.Errorf("config_dump changed the plan, or left the secret out: %v, %v", p.Secrets, got.Secrets)
	}
	notReady = errors.New("no plan is in force")
	if status, body, _ := ask(t, "GET", "http://"+addr+"/healthz/ready", nil); status != 503 || body != "not ready: no plan is in force\n" {
		t.Errorf("%d %q", status, body)
	}
}

func TestAbsentPages(t *testing.T) {
	addr := serve(t, Options{Plan: func() *plan.Plan { return nil }})
	for _, path := range []string{"/healthz/ready", "/metrics", "/config_dump", "/clusters", "/certs", "/drain", "/logging"} {
		if status, _, _ := ask(t, "GET", "http://"+addr+path, nil); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

func TestNamesOfStrangersAreRefused(t *testing.T) {
	addr := serve(t, Options{Quit: func() { t.Error("commanded") }})
	for host, want := range map[string]int{"evil.example": 403, "localhost.evil.example:80": 403, "localhost:1": 200, "127.0.0.1": 200, "[::1]:15000": 200} {
		if status, _, _ := ask(t, "GET", "http://"+addr+"/healthz/live", func(r *http.Request) { r.Host = host }); status != want {
			t.Errorf("%s: %d, want %d", host, status, want)
		}
	}
	if status, _, _ := ask(t, "POST", "http://"+addr+"/quitquitquit", func(r *http.Request) { r.Host = "evil.example" }); status != 403 {
		t.Errorf("quit: %d", status)
	}
}

// A page in a browser sends to any port of the machine, and its Host is right: what gives it away is that browsers say where it is from.
func TestPagesOfBrowsersDoNotCommand(t *testing.T) {
	addr := serve(t, Options{Quit: func() { t.Error("commanded") }, Drain: func() {}})
	for name, value := range map[string]string{"Origin": "https://evil.example", "origin": "null", "Sec-Fetch-Site": "cross-site"} {
		if status, _, _ := ask(t, "POST", "http://"+addr+"/quitquitquit", func(r *http.Request) { r.Header.Set(name, value) }); status != 403 {
			t.Errorf("%s: %d", name, status)
		}
	}
	if status, _, _ := ask(t, "POST", "http://"+addr+"/drain", nil); status != 200 {
		t.Errorf("a program: %d", status)
	}
}

func TestOthersSeeHealthAndMetrics(t *testing.T) {
	var from, at netip.AddrPort
	addr := serve(t, Options{
		Ready: func() error { return nil }, Metrics: page("metric 1\n"), Plan: func() *plan.Plan { return &plan.Plan{} },
		Listeners: func() any { return 1 }, Clusters: func() any { return 1 }, Certs: trust.Static{}, Level: new(slog.LevelVar),
		Drain: func() { t.Error("drained") }, Quit: func() { t.Error("quit") },
		Trusted: func(remote, local netip.AddrPort) error {
			from, at = remote, local
			return errors.New("it is a stranger's")
		},
	})
	for path := range New(Options{Ready: func() error { return nil }, Metrics: page(""), Plan: func() *plan.Plan { return nil }, Listeners: func() any { return 1 },
		Clusters: func() any { return 1 }, Certs: trust.Static{}, Level: new(slog.LevelVar), Drain: func() {}, Quit: func() {}}).paths {
		want := 403
		switch path {
		case "/healthz/live", "/healthz/ready", "/metrics", "/stats/prometheus":
			want = 200
		}
		for _, method := range []string{"GET", "POST"} {
			status, body, _ := ask(t, method, "http://"+addr+path, nil)
			if method == "POST" && want == 200 {
				want = 405
			}
			if status != want || want == 403 && !strings.Contains(body, "it is a stranger's") {
				t.Errorf("%s %s: %d %q, want %d", method, path, status, body, want)
			}
		}
	}
	if at.String() != addr || !from.Addr().IsLoopback() || from.Port() == 0 {
		t.Errorf("asked about %v at %v", from, at)
	}
}

func TestKeepAliveAndShutdown(t *testing.T) {
	addr := serve(t, Options{Metrics: page(strings.Repeat("x", 40_000))})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	in := bufio.NewReader(nc)
	for _, path := range []string{"/metrics", "/healthz/live", "/metrics"} {
		if _, err := fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, addr); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK || len(b) == 0 || bytes.ContainsAny(b, "\r") {
			t.Errorf("%s: %d, %d bytes, %v", path, res.StatusCode, len(b), err)
		}
	}
	// The connection stays open: stopping the server (in Cleanup) must not wait for it.
}

// Who takes all places and says nothing gives way to who asks: the kubelet, whose answer decides whether the proxy gets traffic.
func TestIdleConnectionsGiveWay(t *testing.T) {
	addr := serve(t, Options{Ready: func() error { return nil }})
	for range 2 * maxConns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute} // an idle connection lasts two
	res, err := client.Get("http://" + addr + "/healthz/ready")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("status %d", res.StatusCode)
	}
}
