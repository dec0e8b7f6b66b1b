package advisories

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// next sees that the connections to the endpoint that are left for others are clean: each request gets its own answer.
func (l *lab) next() {
	l.t.Helper()
	for i := range 3 {
		c := l.dial()
		id := strconv.Itoa(i)
		c.send("GET /next HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\nconnection: close\r\n\r\n")
		if m, _, err := c.read("GET"); err != nil || m.status != 200 || m.get("x-id") != id || m.body != "GET /next" {
			l.t.Errorf("the next client got %v, %v", m, err)
		}
		_ = c.nc.Close()
	}
}

// An endpoint that answers before it has the body leaves nothing behind for the next client, whatever the status and
// whatever becomes of the body (Expect or not, sent or not, early or late).
func TestEarlyAnswers(t *testing.T) {
	apart(t)
	for _, status := range []int{200, 204, 401, 417, 503} {
		for _, framing := range []string{"content-length: 30", "content-length: 300000", "transfer-encoding: chunked"} {
			for _, expect := range []string{"", "expect: 100-continue\r\n"} {
				for _, sends := range []bool{true, false} {
					if !sends && strings.HasSuffix(framing, " 30") {
						continue // a small body is waited for before anything is sent on
					}
					name := fmt.Sprintf("%d %s %q body %v", status, framing, expect, sends)
					o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
						if m.target != "/early" {
							return proceed
						}
						_, _ = fmt.Fprintf(nc, "HTTP/1.1 %d Early\r\n%s\r\n", status, map[bool]string{true: "", false: "content-length: 0\r\n"}[status == 204])
						if br.Buffered() > 0 || expect == "" {
							_ = readBody(br, m, false) // it drains, as some do
						}
						return done
					})
					l := newLab(t, o.addr)
					c := l.dial()
					c.send("POST /early HTTP/1.1\r\nhost: a\r\n" + framing + "\r\n" + expect + "\r\n")
					if sends {
						body := hidden[:30]
						if strings.Contains(framing, "chunked") {
							body = "5\r\nhello\r\n0\r\n\r\n"
						}
						c.send(body)
						if strings.HasSuffix(framing, "30") || strings.HasSuffix(framing, "chunked") {
							c.send("GET /after HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
						}
					}
					m, _, err := c.read("POST")
					if err != nil || m.status != status && m.status != 503 {
						t.Errorf("%s: %v, %v", name, m, err)
					}
					_ = c.nc.Close()
					l.next()
					for _, m := range o.take() {
						if m.target != "/early" && m.target != "/after" && m.target != "/next" {
							t.Errorf("%s: the origin saw %s", name, m.target)
						}
					}
				}
			}
		}
	}
	o := newOrigin(t, nil)
	c := newLab(t, o.addr).dial()
	c.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: x\r\ncontent-length: 5\r\n\r\nhello")
	if m := c.must("POST"); m.status != 417 {
		t.Errorf("an unknown expectation is answered with %d", m.status)
	}
}

// Informational responses are passed on in order, a bounded number of them, and never in place of a final one.
func TestInformational(t *testing.T) {
	for _, status := range []int{100, 102, 103, 199} {
		for _, n := range []int{1, 10, 10_000} {
			o := newOrigin(t, func(m *message, nc net.Conn, _ *bufio.Reader) verdict {
				if m.target == "/many" {
					_, _ = io.WriteString(nc, strings.Repeat(fmt.Sprintf("HTTP/1.1 %d x\r\nlink: y\r\n\r\n", status), n))
				}
				return proceed
			})
			l := newLab(t, o.addr)
			c := l.dial()
			c.send("GET /many HTTP/1.1\r\nhost: a\r\n\r\n")
			m, interim, err := c.read("GET")
			switch {
			case err != nil:
				t.Errorf("%d times %d: %v", n, status, err)
			case n <= 10 && m.status != 200, n > 10 && m.status == 200:
				t.Errorf("%d times %d: the answer is %d", n, status, m.status)
			case status == 100 && interim > 0:
				t.Errorf("%d times 100 that nobody asked for were passed on", interim)
			case interim > 16:
				t.Errorf("%d informational responses were passed on", interim)
			}
			_ = c.nc.Close()
			l.next()
		}
	}
}

// No tunnel begins before the endpoint has agreed, no byte of it leaves before, and when it does not agree nothing is
// left for others.
func TestTunnelsThatFail(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
		"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n\r\nhello",
		"",
	} {
		o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
			if m.target != "/tunnel" {
				return proceed
			}
			_ = nc.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if p, _ := br.Peek(1); len(p) > 0 {
				t.Errorf("%q: bytes of the tunnel came before the answer", answer)
			}
			_ = nc.SetReadDeadline(time.Time{})
			if answer == "" {
				return done
			}
			_, _ = io.WriteString(nc, answer)
			if strings.Contains(answer, " 101 ") {
				_, _ = io.Copy(io.Discard, br)
				return done
			}
			return answered
		})
		l := newLab(t, o.addr)
		for _, request := range []string{
			"GET /tunnel HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
			"GET /tunnel HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: other/1\r\n\r\n",
		} {
			c := l.dial()
			c.send(request, "\x81\x05hello")
			m, _, err := c.read("GET")
			if agreed := strings.Contains(answer, "101") && strings.Contains(answer, "websocket"); err == nil && (m.status == 101) != agreed {
				t.Errorf("%q: the client got %d", answer, m.status)
			}
			_ = c.nc.Close()
			l.next()
		}
		for _, m := range o.take() {
			if m.target != "/tunnel" && m.target != "/next" {
				t.Errorf("%q: the origin saw %s", answer, m.target)
			}
		}
	}
	// CONNECT: not on a listener that stands for services, and with nothing left of what was sent too early.
	o := newOrigin(t, nil)
	l := newLab(t, o.addr)
	c := l.dial()
	c.send("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", hidden)
	if m := c.must("CONNECT"); m.status < 400 {
		t.Errorf("CONNECT got %d", m.status)
	}
	h := l.dialH2()
	_ = h.send(open(1, false, raw(":method", "CONNECT", ":authority", "a:80")), data(1, false, hidden))
	if a := h.until(1); a.status < 400 && a.reset == nil {
		t.Errorf("CONNECT of HTTP/2 got %v", a)
	}
	l.next()
	// CONNECT through a forward proxy to an endpoint that is not there.
	f := newLab(t, o.addr, planned(func(p *plan.Plan) {
		p.Listeners = []plan.Listener{{Name: "forward", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true,
			Ports: []plan.ForwardPort{{Port: 80, Protocol: ident.HTTP, Routes: "t"}, {Port: 9, Protocol: ident.TCP, Hosts: []plan.ForwardHost{{Host: "dead", TCP: to("dead")}}}}}}
		p.Clusters = append(p.Clusters, plan.Cluster{Name: "dead", Host: "dead", Port: 9, Protocol: ident.TCP})
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: "dead", Endpoints: []plan.Endpoint{{Address: "127.0.0.1:1"}}})
	}))
	c = f.dial()
	c.send("CONNECT dead:9 HTTP/1.1\r\nhost: dead:9\r\n\r\n", strings.ReplaceAll(hidden, "GET /", "GET http://a/"))
	if m := c.must("CONNECT"); m.status < 400 {
		t.Errorf("CONNECT to nobody got %d", m.status)
	}
	for _, m := range o.take() {
		if m.target == "/hidden" {
			// After a refusal the connection is HTTP again and this is the client's next request; but a client that sent it
			// too early meant it for the tunnel.
			t.Error("what was meant for the tunnel became a request")
		}
	}
}

// HTTP/2 cannot be reached through an upgrade, and its preface in a body is a body.
func TestUpgradeToHTTP2(t *testing.T) {
	o := newOrigin(t, nil)
	l := newLab(t, o.addr)
	for _, lines := range []string{
		"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
		"connection: upgrade\r\nupgrade: H2C\r\nhttp2-settings: AAMAAABk\r\n",
		"connection: upgrade\r\nupgrade: h2c, websocket\r\n",
		"connection: upgrade\r\nupgrade: h2\r\n",
		"connection: upgrade\r\nupgrade: h2c/2.0\r\n",
		"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
	} {
		c := l.dial()
		c.send("GET / HTTP/1.1\r\nhost: a\r\n" + lines + "\r\n")
		c.must("GET")
		for _, m := range o.take() {
			if m.get("upgrade") != "" || m.get("http2-settings") != "" {
				t.Errorf("%q came through as %q", lines, m.fields)
			}
		}
	}
	h := l.dialH2()
	for i, protocol := range []string{"h2c", "H2C", "h2", "h2c/1", "http/1.1"} {
		n := id(uint32(i))
		_ = h.send(open(n, false, raw(":method", "CONNECT", ":protocol", protocol, ":scheme", "http", ":path", "/", ":authority", "a")))
		if a := h.until(n); a.status/100 == 2 {
			t.Errorf(":protocol %s was accepted", protocol)
		}
		for _, m := range o.take() {
			if m.get("upgrade") != "" {
				t.Errorf(":protocol %s came through as %q", protocol, m.fields)
			}
		}
	}
	// An endpoint that answers 200 has not switched, and HTTP/2 must not be told that it has.
	_ = h.send(open(101, false, raw(":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/ws", ":authority", "a")))
	if a := h.until(101); a.status != 502 {
		t.Errorf("a WebSocket that was answered with 200 got %v", a)
	}
	if seen := o.take(); len(seen) != 1 || seen[0].get("transfer-encoding") != "" || seen[0].get("sec-websocket-key") == "" {
		t.Errorf("a WebSocket of HTTP/2 came as %v", seen)
	}
	c := l.dial()
	c.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 24\r\n\r\n" + http2.ClientPreface)
	if m := c.must("POST"); m.status != 200 {
		t.Errorf("a preface as a body got %d", m.status)
	}
	if seen := o.take(); len(seen) != 1 || seen[0].body != http2.ClientPreface {
		t.Errorf("the origin saw %v", seen)
	}
}

// Retries never put bytes of one attempt into another.
func TestRetriesAreClean(t *testing.T) {
	n := 0
	o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
		if m.target != "/flaky" {
			return proceed
		}
		if n++; n%3 == 0 {
			return proceed
		}
		if n%3 == 1 {
			_, _ = io.WriteString(nc, "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n") // before the body
			return answered
		}
		return done
	})
	l := newLab(t, o.addr, route(func(r *plan.Route) {
		r.Retry = &plan.Retry{Attempts: 2, On: plan.Retry5xx | plan.RetryReset, BackoffBase: plan.Duration(time.Millisecond)}
	}))
	for i := range 30 {
		c := l.dial()
		id := strconv.Itoa(i)
		c.send("POST /flaky HTTP/1.1\r\nhost: a\r\nx-id: " + id + "\r\n")
		if i%2 == 0 {
			c.send("transfer-encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(hidden), hidden))
		} else {
			c.send(fmt.Sprintf("content-length: %d\r\n\r\n%s", len(hidden), hidden))
		}
		if m := c.must("POST"); m.status == 200 && m.get("x-id") != id {
			t.Errorf("request %s got the answer to %s", id, m.get("x-id"))
		}
		_ = c.nc.Close()
		l.next()
	}
	for _, m := range o.take() {
		if m.target == "/hidden" || m.target == "/flaky" && m.body != "" && m.body != hidden {
			t.Errorf("the origin saw %s with %q", m.target, m.body)
		}
	}
}

// issue returns the credentials of an identity, signed by a new authority.
func issue(t *testing.T) trust.Source {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "default", ServiceAccount: "a"}
	uri, _ := url.Parse(id.URI())
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: ident.DefaultTrustDomain}}}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	root, _ = x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, URIs: []*url.URL{uri}}
	if der, err = x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, key); err != nil {
		t.Fatal(err)
	}
	c, err := trust.New(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return trust.Static{Credentials: c}
}

// Whoever is in the path and speaks before, or instead of, the TLS handshake is not heard.
func TestPlaintextBeforeTLS(t *testing.T) {
	fake := "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-id: ghost\r\n\r\nevil"
	for _, first := range []string{fake, "\x15\x03\x03\x00\x02\x01\x00" + fake, "\x17\x03\x03\x00" + string(rune(len(fake))) + fake, "\x16\x03\x03\x00\x04" + fake, ""} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			for {
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(nc, first)
				_ = nc.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, nc)
				_ = nc.Close()
			}
		}()
		l := newLab(t, ln.Addr().String(), func(p *plan.Plan, o *live.Options) {
			o.Credentials = issue(t)
			p.Clusters[0].TLS = plan.TLSMutual
			p.Endpoints[0].Endpoints[0].Identity = ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "default", ServiceAccount: "a"}
		})
		c := l.dial()
		c.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n")
		if m := c.must("GET"); m.status != 503 || strings.Contains(m.body, "evil") {
			t.Errorf("%.20q: the client got %d %q", first, m.status, m.body)
		}
		_ = ln.Close()
		<-over
	}
}
