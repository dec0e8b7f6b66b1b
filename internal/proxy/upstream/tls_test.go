package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// sidecar is a listener with mesh TLS that answers every connection with what TLS said about it.
func sidecar(t *testing.T, src trust.Source) string {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := trust.ServerConfig(src, []string{trust.ALPNHTTP1, trust.ALPNHTTP2, trust.ALPNOpaque})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := inner.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				tc := tls.Server(nc, cfg)
				defer func() { _ = tc.Close() }()
				if tc.Handshake() != nil {
					return
				}
				cs := tc.ConnectionState()
				id, _, _ := trust.PeerOf(cs)
				answer := cs.NegotiatedProtocol + " " + cs.ServerName + " " + id.ServiceAccount
				switch cs.NegotiatedProtocol {
				case trust.ALPNOpaque:
					_, _ = io.WriteString(tc, answer)
				default:
					h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.WriteString(w, r.Proto+" "+answer)
					})
					serveOne(tc, h)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = inner.Close()
		wg.Wait()
	})
	return inner.Addr().String()
}

// serveOne serves one connection, TLS already done: net/http is shown it as plaintext.
func serveOne(nc net.Conn, h http.Handler) {
	l := &oneListener{conns: make(chan net.Conn, 1), addr: nc.LocalAddr()}
	over := make(chan struct{})
	l.conns <- &closing{Conn: nc, over: over}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go func() {
		<-over
		close(l.conns)
	}()
	_ = srv.Serve(l)
}

type oneListener struct {
	conns chan net.Conn
	addr  net.Addr
}

func (l *oneListener) Accept() (net.Conn, error) {
	if nc, ok := <-l.conns; ok {
		return nc, nil
	}
	return nil, net.ErrClosed
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return l.addr }

type closing struct {
	net.Conn
	once sync.Once
	over chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.over) })
	return c.Conn.Close()
}

// meshCluster is a cluster with one endpoint that proves to be id.
func meshCluster(s *Set, p plan.Cluster, addr string, id ident.Identity) *Cluster {
	p.Name = "c"
	s.put([]plan.Cluster{p}, []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: addr, Identity: id}}}})
	return s.Cluster("c")
}

func TestMeshTLS(t *testing.T) {
	ca := newAuthority(t)
	addr := sidecar(t, trust.Static{Credentials: ca.issue(t, identity("server"))})
	src := trust.Static{Credentials: ca.issue(t, identity("client"))}
	for _, mode := range []plan.UpstreamTLS{plan.TLSAuto, plan.TLSMutual} {
		s := newSet(t, Options{Credentials: src})
		c := meshCluster(s, plan.Cluster{TLS: mode, SNI: "outbound_.80_._.server"}, addr, identity("server"))
		if body, _ := mustGet(t, c, Attempt{}, "/"); body != "HTTP/1.1 istio-http/1.1 outbound_.80_._.server client" {
			t.Errorf("HTTP/1: %q", body)
		}
		if _, reused := mustGet(t, c, Attempt{}, "/"); !reused {
			t.Error("HTTP/1: the TLS connection was not used again")
		}
		if body, _ := mustGet(t, c, Attempt{HTTP2: true, Detected: true}, "/"); body != "HTTP/2.0 istio-h2 outbound_.80_._.server client" {
			t.Errorf("HTTP/2: %q", body)
		}
		nc, e, err := c.Dial(time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(nc)
		if string(b) != "istio outbound_.80_._.server client" || err != nil || !e.TLS() {
			t.Errorf("opaque: %q %v", b, err)
		}
		_ = nc.Close()
	}
}

func TestMeshTLSFailsClosed(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	server := trust.Static{Credentials: ca.issue(t, identity("server"))}
	ours := trust.Static{Credentials: ca.issue(t, identity("client"))}
	var cause *ConnectError
	for _, tt := range []struct {
		name   string
		source trust.Source
		server trust.Source
		expect ident.Identity
		want   error
	}{
		{"no source", nil, server, identity("server"), trust.ErrNoCredentials},
		{"no credentials yet", new(trust.Holder), server, identity("server"), trust.ErrNoCredentials},
		{"somebody else", ours, server, identity("other"), trust.ErrUnexpectedPeer},
		{"other roots", ours, trust.Static{Credentials: stranger.issue(t, identity("server"))}, identity("server"), trust.ErrPeer},
	} {
		c := meshCluster(newSet(t, Options{Credentials: tt.source}), plan.Cluster{}, sidecar(t, tt.server), tt.expect)
		for _, http2 := range []bool{false, true} {
			if _, err := c.Acquire(&Attempt{HTTP2: http2}); !errors.Is(err, tt.want) || !errors.As(err, &cause) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
		}
		if _, _, err := c.Dial(time.Time{}); !errors.Is(err, tt.want) {
			t.Errorf("%s: Dial: %v, want %v", tt.name, err, tt.want)
		}
	}

	// A plaintext server where TLS is expected.
	c := meshCluster(newSet(t, Options{Credentials: ours}), plan.Cluster{}, newApp(t, nil).addr(), identity("server"))
	if _, err := c.Acquire(&Attempt{}); !errors.As(err, &cause) {
		t.Errorf("plaintext server: %v", err)
	}
}

func TestWhoGetsTLS(t *testing.T) {
	id := identity("x")
	for _, tt := range []struct {
		mode     plan.UpstreamTLS
		e        plan.Endpoint
		tls, use bool
	}{
		{plan.TLSAuto, plan.Endpoint{Identity: id}, true, true},
		{plan.TLSAuto, plan.Endpoint{Identity: id, Plaintext: true}, false, true},
		{plan.TLSAuto, plan.Endpoint{}, false, true},
		{plan.TLSOff, plan.Endpoint{Identity: id}, false, true},
		{plan.TLSOff, plan.Endpoint{}, false, true},
		{plan.TLSMutual, plan.Endpoint{Identity: id}, true, true},
		{plan.TLSMutual, plan.Endpoint{Identity: id, Plaintext: true}, true, true},
		{plan.TLSMutual, plan.Endpoint{}, false, false},
	} {
		k, use := keyOf(&plan.Cluster{TLS: tt.mode, SNI: "s"}, &tt.e)
		if use != tt.use || k.tls != tt.tls || (k.sni != "") != tt.tls {
			t.Errorf("mode %q, endpoint %+v: used %v, TLS %v", tt.mode, tt.e, use, k.tls)
		}
	}
}

// Connections that were made under one security must not be used under another.
func TestConnectionsDontOutliveTheirSecurity(t *testing.T) {
	ca := newAuthority(t)
	addr := sidecar(t, trust.Static{Credentials: ca.issue(t, identity("server"))})
	s := newSet(t, Options{Credentials: trust.Static{Credentials: ca.issue(t, identity("client"))}})
	c := meshCluster(s, plan.Cluster{SNI: "one"}, addr, identity("server"))
	mustGet(t, c, Attempt{}, "/")
	meshCluster(s, plan.Cluster{SNI: "two"}, addr, identity("server"))
	if body, reused := mustGet(t, c, Attempt{}, "/"); reused || body != "HTTP/1.1 istio-http/1.1 two client" {
		t.Errorf("after a change of SNI: %q, reused %v", body, reused)
	}
	meshCluster(s, plan.Cluster{SNI: "two"}, addr, identity("other"))
	if _, err := c.Acquire(&Attempt{}); !errors.Is(err, trust.ErrUnexpectedPeer) {
		t.Errorf("after a change of identity: %v", err)
	}
}

// Certificates and roots that rotate all the time must not fail a request.
func TestRotationFailsNothing(t *testing.T) {
	checkAfter(t)
	ca := newAuthority(t)
	server, client := new(trust.Holder), new(trust.Holder)
	server.Set(ca.issue(t, identity("server")))
	client.Set(ca.issue(t, identity("client")))
	addr := sidecar(t, server)
	c := meshCluster(newSet(t, Options{Credentials: client}),
		plan.Cluster{Limits: plan.Limits{MaxRequestsPerConnection: 2}}, addr, identity("server"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				server.Set(ca.issue(t, identity("server")))
				client.Set(ca.issue(t, identity("client")))
			}
		}
	})
	for i := range 100 {
		mustGet(t, c, Attempt{HTTP2: i%2 == 0}, "/")
	}
	close(stop)
	wg.Wait()
}

func TestConfigIsKeptUntilRotation(t *testing.T) {
	ca := newAuthority(t)
	src := new(trust.Holder)
	src.Set(ca.issue(t, identity("client")))
	c := meshCluster(newSet(t, Options{Credentials: src}), plan.Cluster{}, "127.0.0.1:1", identity("server"))
	e := c.core().state.Load().endpoints[0]
	one, _ := e.clientConfig(trust.ALPNHTTP1)
	two, _ := e.clientConfig(trust.ALPNHTTP1)
	other, _ := e.clientConfig(trust.ALPNHTTP2)
	src.Set(ca.issue(t, identity("client")))
	three, _ := e.clientConfig(trust.ALPNHTTP1)
	if one != two || one == three || one == other {
		t.Error("a configuration is for one protocol and one generation of credentials")
	}
}

func TestDialOpaque(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(nc, nc) // until the client half-closes
				_ = nc.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.TCP, Limits: plan.Limits{MaxConnections: 1}}, l.Addr().String())
	nc, e, err := c.Dial(time.Now().Add(5 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Dial(time.Time{}); !errors.Is(err, ErrOverflow) {
		t.Errorf("beyond maxConnections: %v", err)
	}
	if e.inFlight.Load() != 1 {
		t.Error("an open connection is not in flight")
	}
	if _, err := io.WriteString(nc, "echo"); err != nil {
		t.Error(err)
	}
	if err := nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(nc); string(b) != "echo" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	for range 2 { // closing twice gives back once
		_ = nc.Close()
	}
	if c.core().counted.connections.Load() != 0 || e.inFlight.Load() != 0 {
		t.Error("a closed connection is still counted")
	}

	only(s, plan.Cluster{Protocol: ident.TCP, Limits: plan.Limits{MaxConnectionDuration: plan.Duration(20 * time.Millisecond)}}, l.Addr().String())
	nc, _, err = c.Dial(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived its longest duration")
	}
	_ = nc.Close()
}

func TestCloseCutsWhatIsLeft(t *testing.T) {
	checkAfter(t)
	gate := make(chan struct{})
	defer close(gate)
	a := newApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-gate }))
	s := New(Options{})
	c := only(s, plan.Cluster{}, a.addr())
	h1, h2 := acquire(t, c, Attempt{}), acquire(t, c, Attempt{HTTP2: true, Detected: true})
	tcp, _, err := c.Dial(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, l := range []*Lease{h1, h2} {
		wg.Go(func() {
			if _, _, err := roundTrip(l, "/"); err == nil {
				t.Error("the request ended well")
			}
			l.Done(Outcome{Err: errors.New("cut")})
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
	if _, err := tcp.Read(make([]byte, 1)); err == nil {
		t.Error("the opaque connection is open")
	}
	_ = tcp.Close()
	for _, http2 := range []bool{false, true} {
		if _, err := c.Acquire(&Attempt{HTTP2: http2}); !errors.Is(err, ErrClosed) {
			t.Errorf("Acquire after Close: %v", err)
		}
	}
	if err := s.Close(context.Background()); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if st := s.Snapshot().Clusters[0]; st.Connections != 0 || st.Requests != 0 {
		t.Errorf("left: %+v", st)
	}
}

func TestCloseLetsRequestsFinish(t *testing.T) {
	checkAfter(t)
	a := newApp(t, nil)
	s := New(Options{Conn: conn.Defaults()})
	c := only(s, plan.Cluster{}, a.addr())
	h1, h2 := acquire(t, c, Attempt{}), acquire(t, c, Attempt{HTTP2: true, Detected: true})
	done := make(chan error)
	go func() { done <- s.Close(context.Background()) }()
	<-s.ended
	finish(t, h1)
	finish(t, h2)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
