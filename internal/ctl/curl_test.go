package ctl

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCurlRequest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, []byte("from\nfile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &curlRequest{data: []curlData{{dataText, "a=1"}, {dataText, "@" + file}, {dataBinary, "@-"}, {dataRaw, "@raw"}}, verbose: true,
		headers: []string{"Host: other", "X-A: 1", "x-a: 2", "Accept:", "X-Empty;"}}
	req, err := r.build(t.Context(), "reviews:9080/x?y=z", strings.NewReader("in\n"), "malha/test")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(req.Body)
	if req.Method != http.MethodPost || req.URL.String() != "http://reviews:9080/x?y=z" || req.Host != "other" || string(body) != "a=1&fromfile&in\n&@raw" {
		t.Errorf("%s %s, Host %s, body %q", req.Method, req.URL, req.Host, body)
	}
	want := map[string][]string{
		"X-A": {"1", "2"}, "X-Empty": {""}, "Accept": nil, "User-Agent": {"malha/test"}, "X-Malha-Explain": {"1"},
		"Content-Type": {"application/x-www-form-urlencoded"},
	}
	if diff := cmp.Diff(want, map[string][]string(req.Header)); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"ftp://x/", "http://", "http://a b/", ""} {
		if _, err := (&curlRequest{}).build(t.Context(), bad, nil, ""); err == nil {
			t.Errorf("URL %q was accepted", bad)
		}
	}
	for _, header := range []string{"nocolon", "Content-Length: 3", "transfer-encoding: chunked"} {
		if _, err := (&curlRequest{headers: []string{header}}).build(t.Context(), "http://a/", nil, ""); err == nil {
			t.Errorf("header %q was accepted", header)
		}
	}
}

func TestCurlSendsThePathAsItWasTyped(t *testing.T) {
	for path, want := range map[string]string{
		"/a%2Fb/%41/%5c": "/a%2Fb/%41/%5c",
		"/a|b%2Fc":       "/a%7Cb%2Fc",
		"/é/%2f?x=|":     "/%C3%A9/%2f?x=|",
		"/a b":           "/a%20b",
		"":               "/",
	} {
		req, err := (&curlRequest{}).build(t.Context(), "http://a"+path, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := req.URL.RequestURI(); got != want {
			t.Errorf("%s: asks for %s, want %s", path, got, want)
		}
	}
}

func TestMaxTimeReadsSecondsAsCurlDoes(t *testing.T) {
	for text, want := range map[string]time.Duration{"5": 5 * time.Second, "0.25": 250 * time.Millisecond, "1m30s": 90 * time.Second} {
		var got seconds
		if err := got.Set(text); err != nil || time.Duration(got) != want {
			t.Errorf("%s: %s, %v; want %s", text, time.Duration(got), err, want)
		}
	}
}

// sidecar is a forward proxy that answers by the path, and opens tunnels but to nowhere.example.
func sidecar(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hijack := func() net.Conn {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
			}
			return c
		}
		switch {
		case r.Method == http.MethodConnect && strings.HasPrefix(r.Host, "nowhere.example"):
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.Method == http.MethodConnect:
			up, err := net.Dial("tcp", r.Host)
			if err != nil {
				t.Error(err)
				return
			}
			down := hijack()
			_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
			done := make(chan struct{})
			go func() { _, _ = io.Copy(up, down); _ = up.Close(); close(done) }()
			_, _ = io.Copy(down, up)
			_ = down.Close()
			<-done
		case r.URL.Path == "/close":
			_ = hijack().Close()
		case r.URL.Path == "/part":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "four")
		case r.URL.Path == "/hang":
			<-r.Context().Done()
		case r.URL.Path == "/elsewhere":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case r.URL.Path == "/refused":
			w.Header().Set("X-Malha-Flags", "UF,URX")
			w.Header().Set("X-Malha-Origin", "listener forward")
			w.Header().Set("X-Malha-Route", "")
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.Header().Set("X-Who", "me")
			_, _ = io.WriteString(w, r.Method+" "+r.URL.Path+"\n\x00\xff")
		}
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func TestCurlAnswersAndExitCodes(t *testing.T) {
	forward := sidecar(t)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	secure.EnableHTTP2 = true
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	file := filepath.Join(t.TempDir(), "answer")
	for _, c := range []struct {
		what   string
		r      curlRequest
		url    string
		code   exitCode
		out    string
		errors []string
	}{
		{"bytes come as they are", curlRequest{}, "http://a/ok", 0, "GET /ok\n\x00\xff", nil},
		{"a 503 is an answer", curlRequest{}, "http://a/refused", 0, "", nil},
		{"a 503 with -f", curlRequest{fail: true}, "http://a/refused", 22, "", []string{"error: the answer is 503 Service Unavailable\n"}},
		{"a 503 with -sf", curlRequest{fail: true, silent: true}, "http://a/refused", 22, "", nil},
		{"-v says why", curlRequest{verbose: true, from: "web"}, "http://a/refused", 0, "",
			[]string{"* flag    UF: no connection to the endpoint could be made\n", "* flag    URX: ", "* why     see `malha explain --from web http://a/refused`\n"}},
		{"-w", curlRequest{writeOut: `%{http_code} %{size_download} %header{x-who} 100%% %{url}\n`, output: os.DevNull}, "http://a/ok", 0, "200 10 me 100% http://a/ok\n", nil},
		{"-w without an answer", curlRequest{writeOut: `%{http_code} %{exitcode}\n`, silent: true}, "http://a/close", 52, "000 52\n", nil},
		{"-o", curlRequest{output: file}, "http://a/ok", 0, "", nil},
		{"-o without an answer", curlRequest{output: file}, "http://a/close", 52, "", []string{"without an answer"}},
		{"-o with -f", curlRequest{output: file, fail: true}, "http://a/refused", 22, "", []string{"503"}},
		{"-o into nothing", curlRequest{output: filepath.Join(file, "x")}, "http://a/ok", 23, "", []string{"cannot write the answer"}},
		{"-I", curlRequest{head: true}, "http://a/part", 0, "HTTP/1.1 200 OK\ncontent-length: 10\ncontent-type: text/plain; charset=utf-8\ndate: *\n\n", nil},
		{"a redirect", curlRequest{writeOut: "%{http_code}", head: true, output: os.DevNull}, "http://a/elsewhere", 0, "302", nil},
		{"-L", curlRequest{follow: true}, "http://a/elsewhere", 0, "GET /ok\n\x00\xff", nil},
		{"closed", curlRequest{}, "http://a/close", 52, "", []string{"closed the connection without an answer"}},
		{"broken off", curlRequest{}, "http://a/part", 56, "four", []string{"broke off after 4 bytes"}},
		{"too late", curlRequest{timeout: 10 * time.Millisecond}, "http://a/hang", 28, "", []string{"no answer in time"}},
		{"TLS and HTTP/2 to an outside server", curlRequest{insecure: true}, secure.URL, 0, "HTTP/2.0", nil},
		{"an unknown authority", curlRequest{}, secure.URL, 60, "", []string{"is not trusted", "-k trusts any"}},
		{"TLS to who has none", curlRequest{}, "https://" + forward + "/", 35, "", []string{"speaks no TLS; services of the mesh are called by http://" + forward}},
		{"no tunnel", curlRequest{}, "https://nowhere.example/", 56, "", []string{"opens no tunnel to nowhere.example:443: 503"}},
	} {
		var out, errs strings.Builder
		s := &session{ui: newUI(&out, &errs)}
		req, err := c.r.build(t.Context(), c.url, nil, "test")
		if err != nil {
			t.Fatal(err)
		}
		var code exitCode
		_ = errors.As(s.send(&c.r, req, forward), &code)
		got := regexp.MustCompile(`date: [^\n]*`).ReplaceAllString(out.String(), "date: *")
		if code != c.code || got != c.out {
			t.Errorf("%s: exit code %d, want %d; stdout %q, want %q; stderr %s", c.what, code, c.code, got, c.out, errs.String())
		}
		for _, want := range c.errors {
			if !strings.Contains(errs.String(), want) {
				t.Errorf("%s: stderr %q, want %q", c.what, errs.String(), want)
			}
		}
		if c.errors == nil && errs.Len() > 0 {
			t.Errorf("%s: stderr %q", c.what, errs.String())
		}
	}
	if b, err := os.ReadFile(file); string(b) != "GET /ok\n\x00\xff" {
		t.Errorf("-o wrote %q, %v", b, err)
	}
	var out, errs strings.Builder
	s := &session{ui: newUI(&out, &errs)}
	req, err := (&curlRequest{}).build(t.Context(), "http://a/", nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	var code exitCode
	if _ = errors.As(s.send(&curlRequest{}, req, "127.0.0.1:1"), &code); code != curlConnect || !strings.Contains(errs.String(), "the sidecar at 127.0.0.1:1 cannot be reached") {
		t.Errorf("no sidecar: exit code %d, %s", code, errs.String())
	}
}

func TestCurlBodyThatCannotBeRead(t *testing.T) {
	_, err := (&curlRequest{data: []curlData{{dataText, "@/does/not/exist"}}}).build(t.Context(), "http://a/", nil, "")
	var failed *curlError
	if !errors.As(err, &failed) || failed.code != curlRead {
		t.Errorf("%v, want exit code %d", err, curlRead)
	}
}
