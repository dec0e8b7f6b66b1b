package upstream

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// named issues a certificate for names, and the secret that holds it.
func (a *authority) named(t testing.TB, secret string, names ...string) (tls.Certificate, plan.Secret) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, plan.Secret{Name: secret,
		Certificate: block("CERTIFICATE", der), Key: block("PRIVATE KEY", pkcs8), Authorities: block("CERTIFICATE", a.cert.Raw)}
}

func secretsOf(s ...plan.Secret) func(string) (*trust.Material, error) {
	return trust.NewMaterials(s, nil).Get
}

func TestTLSToStrangers(t *testing.T) {
	ca := newAuthority(t)
	cert, secret := ca.named(t, "n/s", "api.example")
	var sni, by string
	a := newAppTLS(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sni, by = r.TLS.ServerName, ""
		if len(r.TLS.PeerCertificates) > 0 {
			by = r.TLS.PeerCertificates[0].DNSNames[0]
		}
	}), &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"http/1.1"}})
	for what, tt := range map[string]struct {
		t        plan.ClientTLS
		host     string
		ok       bool
		sni, why string
	}{
		"the cluster's host":     {plan.ClientTLS{Authorities: "n/s"}, "api.example", true, "api.example", ""},
		"another host":           {plan.ClientTLS{Authorities: "n/s"}, "web.example", false, "", "not web.example"},
		"SNI":                    {plan.ClientTLS{Authorities: "n/s", SNI: "api.example"}, "web.example", true, "api.example", ""},
		"names":                  {plan.ClientTLS{Authorities: "n/s", SNI: "x.example", SubjectAltNames: []string{"api.example"}}, "web.example", true, "x.example", ""},
		"other names":            {plan.ClientTLS{Authorities: "n/s", SubjectAltNames: []string{"y"}}, "api.example", false, "", "none of the names"},
		"the system's":           {plan.ClientTLS{}, "api.example", false, "", "unknown authority"},
		"insecure":               {plan.ClientTLS{Insecure: true}, "web.example", true, "web.example", ""},
		"certificate":            {plan.ClientTLS{Authorities: "n/s", Secret: "n/s"}, "api.example", true, "api.example", ""},
		"no such authorities":    {plan.ClientTLS{Authorities: "n/gone"}, "api.example", false, "", "n/gone"},
		"no such certificate":    {plan.ClientTLS{Authorities: "n/s", Secret: "n/gone"}, "api.example", false, "", "n/gone"},
		"insecure, no such cert": {plan.ClientTLS{Insecure: true, Secret: "n/gone"}, "api.example", false, "", "n/gone"},
		"wildcard host":          {plan.ClientTLS{Authorities: "n/s"}, "*.example", true, "api.example", ""},
	} {
		s := newSet(t, Options{Secrets: secretsOf(secret)})
		c := only(s, plan.Cluster{Host: tt.host, Protocol: ident.HTTP, Originate: &tt.t}, a.addr())
		_, _, _, err := get(c, Attempt{Host: []byte("api.example")}, "/")
		if tt.ok {
			if err != nil || sni != tt.sni || (by != "") != (tt.t.Secret != "") {
				t.Errorf("%s: %v, SNI %q, our certificate %q", what, err, sni, by)
			}
			continue
		}
		var connect *ConnectError
		if !errors.As(err, &connect) || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s: %v, want a connect error with %q", what, err, tt.why)
		}
	}
}

// Without a lookup for secrets, nothing that needs one works.
func TestNoSecrets(t *testing.T) {
	c := only(newSet(t, Options{}), plan.Cluster{Host: "x", Protocol: ident.HTTP, Originate: &plan.ClientTLS{Authorities: "n/s"}}, "127.0.0.1:1")
	if _, err := c.Acquire(&Attempt{}); err == nil || !strings.Contains(err.Error(), "secret n/s is missing") {
		t.Errorf("%v", err)
	}
}

func TestHTTP2ToStrangers(t *testing.T) {
	ca := newAuthority(t)
	cert, secret := ca.named(t, "n/s", "api.example")
	for _, protocols := range [][]string{{"h2", "http/1.1"}, {"http/1.1"}} {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols})
		if err != nil {
			t.Fatal(err)
		}
		var major int
		srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { major = r.ProtoMajor }), Protocols: new(http.Protocols)}
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetHTTP2(true)
		go func() { _ = srv.Serve(ln) }()
		t.Cleanup(func() { _ = srv.Close() })
		c := only(newSet(t, Options{Secrets: secretsOf(secret)}), plan.Cluster{Host: "api.example", Protocol: ident.HTTP2, Originate: &plan.ClientTLS{Authorities: "n/s"}}, ln.Addr().String())
		_, _, _, err = get(c, Attempt{}, "/")
		if h2 := len(protocols) == 2; h2 && (err != nil || major != 2) || !h2 && (err == nil || !strings.Contains(err.Error(), "does not speak HTTP/2") && !strings.Contains(err.Error(), "no application protocol")) {
			t.Errorf("a server of %q: %v, HTTP/%d", protocols, err, major)
		}
	}
}

// A connection never serves requests of another way to begin it.
func TestOriginationIsPartOfAnEndpoint(t *testing.T) {
	a := newApp(t, nil)
	s := newSet(t, Options{})
	base := plan.Cluster{Host: "x", Protocol: ident.HTTP}
	mustGet(t, only(s, base, a.addr()), Attempt{}, "/")
	for what, p := range map[string]plan.Cluster{
		"TLS":       {Host: "x", Protocol: ident.HTTP, Originate: &plan.ClientTLS{SNI: "y"}},
		"PROXY":     {Host: "x", Protocol: ident.HTTP, ProxyProtocol: 2},
		"tunnel":    {Host: "x", Protocol: ident.HTTP, Tunnel: &plan.Tunnel{Host: "y", Port: 1}},
		"keepalive": {Host: "x", Protocol: ident.HTTP, Keepalive: &plan.Keepalive{Probes: 3}},
	} {
		before := only(s, base, a.addr()).core().state.Load().endpoints[0]
		if only(s, p, a.addr()).core().state.Load().endpoints[0] == before {
			t.Errorf("%s: the endpoint of before is kept", what)
		}
	}
}

func TestProxyHeaders(t *testing.T) {
	v4a, v4b := netip.MustParseAddrPort("10.1.2.3:4567"), netip.MustParseAddrPort("10.9.8.7:80")
	v6a, v6b := netip.MustParseAddrPort("[2001:db8::1]:4567"), netip.MustParseAddrPort("[2001:db8::2]:443")
	mapped := netip.AddrPortFrom(netip.MustParseAddr("::ffff:10.1.2.3"), 4567)
	zoned := netip.AddrPortFrom(netip.MustParseAddr("fe80::1%eth0"), 4567)
	const sig = "\r\n\r\n\x00\r\nQUIT\n"
	for _, tt := range []struct {
		version  uint32
		src, dst netip.AddrPort
		want     string
	}{
		{1, v4a, v4b, "PROXY TCP4 10.1.2.3 10.9.8.7 4567 80\r\n"},
		{1, mapped, v4b, "PROXY TCP4 10.1.2.3 10.9.8.7 4567 80\r\n"},
		{1, v6a, v6b, "PROXY TCP6 2001:db8::1 2001:db8::2 4567 443\r\n"},
		{1, v4a, v6b, "PROXY TCP6 ::ffff:10.1.2.3 2001:db8::2 4567 443\r\n"},
		{1, zoned, v6b, "PROXY TCP6 fe80::1 2001:db8::2 4567 443\r\n"},
		{1, netip.AddrPort{}, v4b, "PROXY UNKNOWN\r\n"},
		{2, v4a, v4b, sig + "\x21\x11\x00\x0c\x0a\x01\x02\x03\x0a\x09\x08\x07\x11\xd7\x00\x50"},
		{2, v6a, v6b, sig + "\x21\x21\x00\x24\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x02\x11\xd7\x01\xbb"},
		{2, v4a, netip.AddrPort{}, sig + "\x20\x00\x00\x00"},
	} {
		if got := string(appendProxyHeader(nil, tt.version, tt.src, tt.dst)); got != tt.want {
			t.Errorf("version %d, %v to %v:\n%q, want\n%q", tt.version, tt.src, tt.dst, got, tt.want)
		}
	}
}

// lined reads the PROXY line of a connection, and shows it as its remote address.
type lined struct{ net.Listener }

func (l lined) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	line := make([]byte, 0, 110)
	for !bytes.HasSuffix(line, []byte("\r\n")) && len(line) < 108 {
		b := make([]byte, 1)
		if _, err := nc.Read(b); err != nil {
			break
		}
		line = append(line, b...)
	}
	return told{nc, string(line)}, nil
}

type told struct {
	net.Conn
	line string
}

func (c told) RemoteAddr() net.Addr { return lineAddr(c.line) }

type lineAddr string

func (lineAddr) Network() string  { return "PROXY" }
func (a lineAddr) String() string { return strings.TrimSpace(string(a)) }

func TestProxyProtocolConnectionsAreOfOneClient(t *testing.T) {
	for _, protocol := range []ident.Protocol{ident.HTTP, ident.HTTP2} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) }), Protocols: new(http.Protocols)}
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		go func() { _ = srv.Serve(lined{ln}) }()
		t.Cleanup(func() { _ = srv.Close() })
		s := newSet(t, Options{})
		c := only(s, plan.Cluster{Protocol: protocol, ProxyProtocol: 1}, ln.Addr().String())
		for port := range uint16(3) {
			src := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), 1000+port)
			body, reused := mustGet(t, c, Attempt{Source: src, Target: netip.MustParseAddrPort("10.0.0.2:80")}, "/")
			if want := fmt.Sprintf("PROXY TCP4 10.0.0.1 10.0.0.2 %d 80", 1000+port); body != want || reused {
				t.Errorf("%s: the server was told %q, want %q; reused %v", protocol, body, want, reused)
			}
		}
		eventually(t, "no connection is kept", func() bool { return s.Snapshot().Clusters[0].Connections == 0 })
	}
}

func TestTunnels(t *testing.T) {
	for _, post := range []bool{false, true} {
		var asked string
		a := newApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = r.Method + " " + r.Host
			if r.Method == http.MethodPost {
				_ = http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				b := make([]byte, 1000)
				for {
					n, err := r.Body.Read(b)
					_, _ = w.Write(bytes.ToUpper(b[:n]))
					_ = http.NewResponseController(w).Flush()
					if err != nil {
						return
					}
				}
			}
			nc, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer func() { _ = nc.Close() }()
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\n\r\n")
			b := make([]byte, 1000)
			for {
				n, err := rw.Read(b)
				if _, werr := nc.Write(bytes.ToUpper(b[:n])); err != nil || werr != nil {
					return
				}
			}
		}))
		s := newSet(t, Options{})
		tunnel := &plan.Tunnel{Post: post, Host: "far.example", Port: 4433}
		c := only(s, plan.Cluster{Protocol: ident.TCP, Tunnel: tunnel}, a.addr())
		nc, _, err := c.DialFor(&Attempt{})
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{false: "CONNECT far.example:4433", true: "POST far.example:4433"}[post]; asked != want {
			t.Errorf("asked for %q, want %q", asked, want)
		}
		r := bufio.NewReader(nc)
		for i := range 3 {
			msg := fmt.Sprintf("hello %d %s\n", i, strings.Repeat("x", 5000*i))
			if _, err := nc.Write([]byte(msg)); err != nil {
				t.Fatal(err)
			}
			if got, err := r.ReadString('\n'); err != nil || got != strings.ToUpper(msg) {
				t.Fatalf("post %v: %.40q, %v", post, got, err)
			}
		}
		_ = nc.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := nc.Read(make([]byte, 1)); err == nil || !isTimeout(err) {
			t.Errorf("a deadline that passes: %v", err)
		}
		_ = nc.SetReadDeadline(time.Time{})
		if err := nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("post %v: the end: %q %v", post, rest, err)
		}
		_ = nc.Close()
		if s.Snapshot().Clusters[0].Connections != 0 {
			t.Error("the connection is still counted")
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestTunnelThatIsRefused(t *testing.T) {
	a := newApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(407) }))
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.TCP, Tunnel: &plan.Tunnel{Host: "far.example", Port: 4433}}, a.addr())
	_, _, err := c.DialFor(&Attempt{})
	var connect *ConnectError
	if !errors.As(err, &connect) || !strings.Contains(err.Error(), "CONNECT far.example:4433: it answered 407") {
		t.Errorf("%v", err)
	}
	if st := s.Snapshot().Clusters[0]; st.Connections != 0 || st.ConnectFailedTotal != 1 {
		t.Errorf("%+v", st)
	}
}

func TestKeepalive(t *testing.T) {
	a := newApp(t, nil)
	c := only(newSet(t, Options{}), plan.Cluster{Protocol: ident.TCP, Keepalive: &plan.Keepalive{Probes: 4, Time: plan.Duration(77 * time.Second), Interval: plan.Duration(9 * time.Second)}}, a.addr())
	nc, _, err := c.Dial(time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	raw, err := nc.(*tcpConn).Conn.(*conn.Socket).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var idle, interval, count int
	err = raw.Control(func(fd uintptr) {
		idle, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
		interval, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL)
		count, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT)
	})
	if err != nil || idle != 77 || interval != 9 || count != 4 {
		t.Errorf("idle %d, interval %d, count %d, %v", idle, interval, count, err)
	}
}
