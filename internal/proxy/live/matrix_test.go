package live_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// both is an application that speaks HTTP/1.1 and, with prior knowledge, HTTP/2.
func both(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { _ = s.Close(); done.Wait() })
	return l.Addr().String()
}

// speaking is a client of one version of HTTP.
func speaking(t *testing.T, major int) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), ExpectContinueTimeout: 10 * time.Second, DisableCompression: true}
	if major == 2 {
		tr.Protocols.SetUnencryptedHTTP2(true)
	} else {
		tr.Protocols.SetHTTP1(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// eachPair runs a test for each version that a client and an endpoint may speak. In the mesh's form there are two proxies with
// mutual TLS between them, which speak HTTP/2 to each other.
func eachPair(t *testing.T, app http.Handler, f func(t *testing.T, c *http.Client, url string, down, up int)) {
	at := both(t, app)
	for down := 1; down <= 2; down++ {
		for up, proto := range []ident.Protocol{1: ident.HTTP, 2: ident.HTTP2} {
			if up == 0 {
				continue
			}
			t.Run(fmt.Sprintf("h%d to h%d", down, up), func(t *testing.T) {
				p := simple(at)
				p.Clusters[0].Protocol = proto
				_, addr := start(t, live.Options{}, p)
				f(t, speaking(t, down), "http://"+addr["out"], down, up)
			})
			t.Run(fmt.Sprintf("h%d to h%d in the mesh", down, up), func(t *testing.T) {
				in := inbound(at, plan.TLSStrict, ident.HTTP)
				in.Clusters[0].Protocol = proto
				f(t, speaking(t, down), "http://"+meshPair(t, in, ident.HTTP2), down, up)
			})
		}
	}
}

// An upgrade that HTTP/2 has no words for, or that the endpoint takes none of, is refused, and puts no endpoint aside: neither where it is
// refused nor at a proxy before.
func TestUpgradesThatHTTP2HasNot(t *testing.T) {
	at := both(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			t.Errorf("the application got %s %s", r.Method, r.URL)
		}
	}))
	outlier := &plan.Outlier{Consecutive5xx: 2, ConsecutiveGatewayError: 2, MaxEjectionPercent: 100}
	p := simple(at)
	p.Clusters[0].Protocol, p.Clusters[0].Outlier = ident.HTTP2, outlier
	in := inbound(at, plan.TLSStrict, ident.HTTP)
	in.Clusters[0].Protocol, in.Clusters[0].Outlier = ident.HTTP2, outlier
	watched := func(c *plan.Cluster) { c.Outlier = outlier }
	for where, addr := range map[string]string{
		"one proxy":     startAt(t, p, "out"),
		"in the mesh":   meshPair(t, in, ident.HTTP, watched),
		"h2 in between": meshPair(t, in, ident.HTTP2, watched),
	} {
		for range 3 {
			for _, head := range []string{"GET /up HTTP/1.1\r\nUpgrade: websocket\r\n", "GET /up HTTP/1.1\r\nUpgrade: foo/2\r\n", "POST /up HTTP/1.1\r\nUpgrade: foo\r\n"} {
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				_ = nc.SetDeadline(time.Now().Add(time.Minute))
				_, _ = io.WriteString(nc, head+"Host: a\r\nConnection: upgrade\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
				if err != nil || resp.StatusCode != 400 {
					t.Errorf("%s: %.20q: %+v, %v", where, head, resp, err)
				}
				_ = nc.Close()
			}
		}
		if resp, _ := get(t, client(t), "http://"+addr+"/"); resp.StatusCode != 200 {
			t.Errorf("%s: after them: %d", where, resp.StatusCode)
		}
	}
}

func TestMessagesOfEveryShape(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(200)
		sum := sha256.New()
		b := make([]byte, 4<<10)
		for {
			n, err := r.Body.Read(b)
			sum.Write(b[:n])
			_, _ = w.Write(b[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		w.Header().Set(http.TrailerPrefix+"X-Asked", r.Trailer.Get("X-Ask"))
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(103)
		w.WriteHeader(103)
		_, _ = io.WriteString(w, "final")
	})
	mux.HandleFunc("/length", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hello")
	})
	mux.HandleFunc("/204", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("/304", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"x"`)
		w.WriteHeader(304)
	})
	mux.HandleFunc("/refuse", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(417) }) // reads nothing: no 100
	eachPair(t, mux, func(t *testing.T, c *http.Client, url string, down, up int) {
		t.Run("chunks and trailers both ways", func(t *testing.T) {
			for _, size := range []int{0, 1, 100_000} {
				data := bytes.Repeat([]byte("x"), size)
				req, _ := http.NewRequest("POST", url+"/echo", io.NopCloser(bytes.NewReader(data))) // of unknown length
				req.Trailer = http.Header{"X-Ask": {"why"}}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%d bytes of %d, %v", len(got), size, err)
				}
				if resp.Trailer.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(data)) || resp.Trailer.Get("X-Asked") != "why" {
					t.Errorf("size %d: trailers %v", size, resp.Trailer)
				}
			}
		})
		t.Run("1xx", func(t *testing.T) {
			hints := 0
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == 103 && h.Get("Link") == "</a.css>" {
					hints++
				}
				return nil
			}})
			req, _ := http.NewRequestWithContext(ctx, "GET", url+"/hints", nil)
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if string(body) != "final" || hints != 2 {
				t.Errorf("%q after %d hints", body, hints)
			}
		})
		t.Run("Expect", func(t *testing.T) {
			for path, want := range map[string]int{"/echo": 200, "/refuse": 417} {
				req, _ := http.NewRequest("POST", url+path, strings.NewReader(strings.Repeat("y", 200_000)))
				req.Header.Set("Expect", "100-continue")
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(path, err)
				}
				n, _ := io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != want || want == 200 && n != 200_000 {
					t.Errorf("%s: %d with %d bytes", path, resp.StatusCode, n)
				}
			}
		})
		t.Run("without a body", func(t *testing.T) {
			for _, tt := range []struct {
				method, path string
				status       int
				length       int64
			}{{"HEAD", "/length", 200, 5}, {"GET", "/204", 204, 0}, {"GET", "/304", 304, -1}, {"HEAD", "/204", 204, 0}} {
				for range 3 { // the connection goes on in step
					req, _ := http.NewRequest(tt.method, url+tt.path, nil)
					resp, err := c.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					body, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if err != nil || len(body) > 0 || resp.StatusCode != tt.status || tt.length > 0 && resp.ContentLength != tt.length {
						t.Errorf("%s %s: %d, length %d, body %q, %v", tt.method, tt.path, resp.StatusCode, resp.ContentLength, body, err)
					}
				}
			}
		})
		if down == 1 {
			t.Run("HTTP/1.0", func(t *testing.T) {
				nc, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = nc.Close() }()
				_, _ = io.WriteString(nc, "POST /echo HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
				b, err := io.ReadAll(nc) // the end of the connection is the end of the body
				if err != nil {
					t.Fatal(err)
				}
				if s := string(b); !strings.HasPrefix(s, "HTTP/1.1 200") || !strings.HasSuffix(s, "\r\n\r\nabc") || strings.Contains(strings.ToLower(s), "transfer-encoding") {
					t.Errorf("%q", s)
				}
			})
		}
	})
}

// A client that goes away frees the endpoint soon: before the head, while the body is on its way, and after a long upload.
func TestClientsThatLeave(t *testing.T) {
	type seen struct {
		path string
		ctx  context.Context
	}
	came := make(chan seen, 1)
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/body" {
			_, _ = io.WriteString(w, "a part")
			_ = http.NewResponseController(w).Flush()
		}
		came <- seen{r.URL.Path, r.Context()}
		<-r.Context().Done()
	})
	eachPair(t, app, func(t *testing.T, c *http.Client, url string, _, _ int) {
		for path, body := range map[string]int{"/head": 0, "/body": 0, "/upload": 200_000} {
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "POST", url+path, io.LimitReader(neverEnding('x'), int64(body)))
			left := make(chan struct{})
			go func() {
				defer close(left)
				if resp, err := c.Do(req); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			}()
			s := <-came
			cancel()
			<-left
			select {
			case <-s.ctx.Done():
			case <-time.After(time.Minute):
				t.Errorf("%s: the endpoint still works for a client that left a minute ago", path)
			}
		}
	})
}

type neverEnding byte

func (n neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(n)
	}
	return len(p), nil
}

// The deadline at the client's sidecar ends the work at the server's.
func TestDeadlineFreesTheEndpoint(t *testing.T) {
	var came, ended atomic.Int64
	app := both(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		came.Add(1)
		<-r.Context().Done()
		ended.Add(1)
	}))
	for _, proto := range []ident.Protocol{ident.HTTP, ident.HTTP2} {
		t.Run(proto.String(), func(t *testing.T) {
			a := newAuthority(t)
			_, server := start(t, live.Options{Credentials: a.issue(t, backend)}, inbound(app, plan.TLSStrict, ident.HTTP))
			out := simple(server["in"], func(r *plan.Route) { r.Timeout = plan.Duration(50 * time.Millisecond) })
			out.Node.Identity = frontend
			out.Clusters[0].Protocol = proto
			out.Endpoints[0].Endpoints[0].Identity = backend
			_, at := start(t, live.Options{Credentials: a.issue(t, frontend)}, out)
			before := came.Load()
			for range 200 { // on a busy machine the time may pass before a request has come to the endpoint
				resp, _ := get(t, client(t), "http://"+at["out"]+"/")
				if resp.StatusCode != 504 {
					t.Fatalf("status %d", resp.StatusCode)
				}
				if came.Load() > before {
					break
				}
			}
			if came.Load() == before {
				t.Fatal("no request came to the endpoint")
			}
			for range 6000 {
				if ended.Load() == came.Load() {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Error("the endpoint still works for a request that timed out a minute ago")
		})
	}
}

// A client that closes its half after the request, as nc does, is taken to be gone only when it waits long; a quick answer
// reaches it.
func TestHalfClose(t *testing.T) {
	_, at := start(t, live.Options{}, simple(named(t, "quick")))
	nc, err := net.Dial("tcp", at["out"])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	_ = nc.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(resp.Body); string(body) != "quick" {
		t.Errorf("%q", body)
	}
}
