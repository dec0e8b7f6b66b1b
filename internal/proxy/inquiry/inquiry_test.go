package inquiry

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/probe"
)

func portOf(t *testing.T, addr string) int {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", strings.TrimPrefix(strings.TrimPrefix(addr, "https://"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return a.Port
}

// application answers as programs do.
func application(t *testing.T) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/well", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "fine") })
	mux.HandleFunc("/sick", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no database", 500) })
	mux.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("deep") != "yes" {
			w.WriteHeader(400)
		}
	})
	mux.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "app.example" || r.Header.Get("X-Probe") != "a b" || r.Header.Get("User-Agent") != "mine" {
			http.Error(w, fmt.Sprint(r.Host, r.Header), 400)
		}
	})
	mux.HandleFunc("/plainhost", func(w http.ResponseWriter, r *http.Request) {
		if host, _, _ := net.SplitHostPort(r.Host); host != "198.18.0.7" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") {
			http.Error(w, r.Host, 400)
		}
	})
	mux.HandleFunc("/to/well", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/well", http.StatusFound) })
	mux.HandleFunc("/to/sick", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "../sick", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/to/self", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+r.Host+"/sick", http.StatusFound)
	})
	mux.HandleFunc("/to/other", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.example/", http.StatusFound)
	})
	mux.HandleFunc("/to/login", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/sick?next=http://elsewhere.example/", http.StatusFound)
	})
	mux.HandleFunc("/to/ever", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/to/ever", http.StatusFound) })
	mux.HandleFunc("/nowhere", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(301) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	return mux
}

func TestHTTP(t *testing.T) {
	plain := httptest.NewServer(application(t))
	defer plain.Close()
	secure := httptest.NewTLSServer(application(t))
	defer secure.Close()
	for _, tc := range []struct{ path, want string }{
		{"/well", ""}, {"well", ""}, {"/query?deep=yes", ""}, {"/query", "answered 400"}, {"/sick", "answered 500: no database"},
		{"/missing", "answered 404"}, {"/plainhost", ""}, {"/to/well", ""}, {"/to/sick", "no database"}, {"/to/self", "no database"},
		{"/to/other", ""}, {"/to/login", "no database"}, {"/to/ever", "redirects more than"}, {"/nowhere", ""}, {"/slow", "did not answer within 1s"},
	} {
		for _, tls := range []bool{false, true} {
			p := probe.HTTP{Port: portOf(t, plain.URL), Path: tc.path}
			if tls {
				if tc.path == "/to/self" {
					continue // it names http
				}
				p.Port, p.TLS = portOf(t, secure.URL), true
			}
			seconds := 60 // for what answers, on a machine that is busy
			if tc.path == "/slow" {
				seconds = 0 // it never does; the default
			}
			err := New(probe.Set{"/app-health/a/livez": {HTTP: &p, Seconds: seconds}}, "198.18.0.7").Ask(t.Context(), "/app-health/a/livez")
			check(t, fmt.Sprint(tc.path, " ", tls), err, tc.want)
		}
	}
}

func TestHeaders(t *testing.T) {
	srv := httptest.NewServer(application(t))
	defer srv.Close()
	p := probe.HTTP{Port: portOf(t, srv.URL), Path: "/header", Headers: []probe.Header{
		{Name: "Host", Value: "app.example"}, {Name: "X-Probe", Value: "a b"}, {Name: "User-Agent", Value: "mine"}, {Name: "Connection", Value: "upgrade"},
	}}
	check(t, "headers", New(probe.Set{"p": {HTTP: &p}}, "").Ask(t.Context(), "p"), "")
}

// TestIPv6 asks an application that listens on ::1 alone.
func TestIPv6(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	defer ln.Close()
	check(t, "tcp", New(probe.Set{"p": {TCP: &probe.TCP{Port: ln.Addr().(*net.TCPAddr).Port}}}, "").Ask(t.Context(), "p"), "")
}

func TestTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := New(probe.Set{"p": {TCP: &probe.TCP{Port: ln.Addr().(*net.TCPAddr).Port}}}, "")
	check(t, "open", a.Ask(t.Context(), "p"), "")
	ln.Close()
	check(t, "closed", a.Ask(t.Context(), "p"), "does not take connections")
	check(t, "unknown", a.Ask(t.Context(), "q"), "there is no probe q")
	if !a.Has("p") || a.Has("q") {
		t.Error("Has is wrong")
	}
}

// TestGRPC asks servers that answer with each status, and with rubbish.
func TestGRPC(t *testing.T) {
	message := func(b ...byte) []byte { return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...) }
	for _, tc := range []struct {
		name   string
		body   []byte
		status string
		http   int
		want   string
	}{
		{"serving", message(8, 1), "0", 200, ""},
		{"not serving", message(8, 2), "0", 200, "NOT_SERVING"},
		{"unknown", message(), "0", 200, "UNKNOWN"},
		{"new word", message(8, 77), "0", 200, "status 77"},
		{"not implemented", nil, "12", 200, `grpc-status "12"`},
		{"no such service", nil, "5", 200, `grpc-status "5"`},
		{"not gRPC", []byte("hello"), "0", 200, "not one gRPC message"},
		{"another message", message(10, 1, 65), "0", 200, "not a HealthCheckResponse"},
		{"cut off", message(8), "0", 200, "cut off"},
		{"http error", nil, "0", 503, "status 503"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []byte
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked, _ = io.ReadAll(r.Body)
				w.Header().Set("Content-Type", "application/grpc")
				w.Header().Set("Trailer", "Grpc-Status")
				w.WriteHeader(tc.http)
				_, _ = w.Write(tc.body)
				w.Header().Set("Grpc-Status", tc.status)
			}))
			srv.Config.Protocols = new(http.Protocols)
			srv.Config.Protocols.SetUnencryptedHTTP2(true)
			srv.Start()
			defer srv.Close()
			a := New(probe.Set{"p": {GRPC: &probe.GRPC{Port: portOf(t, srv.URL), Service: "shop"}, Seconds: 60}}, "")
			check(t, tc.name, a.Ask(t.Context(), "p"), tc.want)
			if want := string(message(10, 4, 's', 'h', 'o', 'p')); string(asked) != want {
				t.Errorf("asked %q, want %q", asked, want)
			}
		})
	}
}

// TestEnds is that a question ends with its context.
func TestEnds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	for _, p := range []probe.Probe{{HTTP: &probe.HTTP{Port: port}, Seconds: 60}, {GRPC: &probe.GRPC{Port: port}, Seconds: 60}, {HTTP: &probe.HTTP{Port: port, TLS: true}, Seconds: 60}} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		check(t, "cancelled", New(probe.Set{"p": p}, "").Ask(ctx, "p"), "did not answer")
	}
}

func check(t *testing.T, name string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: got %v, want %q", name, err, want)
	}
}
