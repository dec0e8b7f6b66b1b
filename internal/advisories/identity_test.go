package advisories

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// one returns the identity of a service account.
func one(account string) ident.Identity {
	return ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: "default", ServiceAccount: account}
}

// mesh is a certificate authority whose workloads the tests play.
type mesh struct {
	t  *testing.T
	ca *ca.Authority
}

func newMesh(t *testing.T, now func() time.Time) *mesh {
	t.Helper()
	a, err := ca.Open(ca.Options{TTL: time.Hour, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return &mesh{t, a}
}

func (m *mesh) as(account string) *trust.Credentials {
	m.t.Helper()
	c, err := m.ca.Credentials(ca.Workload{Node: ident.Name{Namespace: "default", Name: account}, Identity: one(account)})
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// guarded makes the lab's listener the inbound one of workload "b".
func (m *mesh) guarded(mode plan.TLSMode, protocol ident.Protocol, policies ...plan.Policy) change {
	return func(p *plan.Plan, o *live.Options) {
		p.Node = plan.Node{Name: ident.Name{Namespace: "default", Name: "b"}, Role: plan.Sidecar, Identity: one("b")}
		l := &p.Listeners[0]
		l.Direction, l.Protocol, l.Port, l.TCP, l.TLS = plan.Inbound, protocol, 80, to("a"), mode
		if protocol == ident.TCP {
			l.Routes = ""
		}
		p.Clusters[0].TLS = plan.TLSOff
		p.Policies = policies
		for _, x := range policies {
			l.Policies = append(l.Policies, x.Name)
		}
		o.Credentials = trust.Static{Credentials: m.as("b")}
	}
}

// secure is a mesh TLS client of a workload; nil is one without a certificate.
func (m *mesh) secure(c *trust.Credentials, alpn ...string) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: alpn, ServerName: "b"} // it is the server that is tried
	if c != nil {
		cfg.Certificates = []tls.Certificate{c.Certificate}
	}
	return cfg
}

const knock = "GET /knock HTTP/1.1\r\nhost: a\r\n\r\n"

// A port that is STRICT hears workloads of its mesh, and nobody else, whatever comes first: not a byte reaches the application.
func TestStrictHearsItsMeshOnly(t *testing.T) {
	apart(t)
	m, other := newMesh(t, nil), newMesh(t, nil)
	past := newMesh(t, func() time.Time { return time.Now().Add(-3 * time.Hour) })
	settings := string(frame(http2.FrameSettings, 0, 0, nil))
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x10\x00\x00\x50"
	plain := map[string]string{
		"HTTP/1.1":                      knock,
		"HTTP/1.0":                      "GET /knock HTTP/1.0\r\n\r\n",
		"absolute form":                 "GET http://a/knock HTTP/1.1\r\nhost: a\r\n\r\n",
		"CONNECT":                       "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
		"HTTP/2 with prior knowledge":   http2.ClientPreface + settings + string(open(1, true, raw(get...))),
		"upgrade to HTTP/2":             "GET /knock HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
		"upgrade to TLS":                "OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: TLS/1.3\r\n\r\n" + knock,
		"PROXY protocol 1":              "PROXY TCP4 127.0.0.1 127.0.0.1 1 80\r\n" + knock,
		"PROXY protocol 2":              v2 + knock,
		"bytes":                         "\x00\x01\x02\x03" + knock,
		"an alert, then HTTP":           "\x15\x03\x03\x00\x02\x01\x00" + knock,
		"data of TLS, then HTTP":        "\x17\x03\x03\x00\x04abcd" + knock,
		"half a hello, then HTTP":       "\x16\x03\x01\x00\x30\x01\x00\x00\x2c\x03\x03" + knock,
		"a hello of SSL 2":              "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + knock,
		"nothing, and the end":          "",
		"line ends before the request":  "\r\n\r\n" + knock,
		"a certificate's name as bytes": one("a").URI() + "\r\n" + knock,
	}
	good := m.as("a")
	secure := map[string]*tls.Config{
		"no certificate":        m.secure(nil, trust.ALPNHTTP1),
		"another mesh":          m.secure(other.as("a"), trust.ALPNHTTP1),
		"another mesh, expired": m.secure(past.as("a"), trust.ALPNHTTP1),
		"no protocol":           m.secure(good),
		"protocols of programs": m.secure(good, "h2", "http/1.1"),
		"a protocol like ours":  m.secure(good, "istio-h3", "ISTIO", "istio-http/1.0"),
		"TLS 1.2": func() *tls.Config {
			c := m.secure(good, trust.ALPNHTTP1)
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 //nolint:gosec // that is the attack
			return c
		}(),
		"a key that is not the certificate's": func() *tls.Config {
			c := m.secure(good, trust.ALPNHTTP1)
			c.Certificates[0].PrivateKey = m.as("a").Certificate.PrivateKey
			return c
		}(),
		"the server's own certificate, without its key": func() *tls.Config {
			c := m.secure(m.as("b"), trust.ALPNHTTP1)
			c.Certificates[0].PrivateKey = other.as("b").Certificate.PrivateKey
			return c
		}(),
		"a root as leaf": func() *tls.Config {
			c := m.secure(good, trust.ALPNHTTP1)
			c.Certificates[0].Certificate = append([][]byte(nil), m.ca.Roots()...)
			return c
		}(),
		"its leaf beneath a stranger's": func() *tls.Config {
			c := m.secure(other.as("a"), trust.ALPNHTTP1)
			c.Certificates[0].Certificate = append(slices.Clone(c.Certificates[0].Certificate), good.Certificate.Certificate[0])
			return c
		}(),
	}
	for _, protocol := range []ident.Protocol{ident.HTTP, ident.HTTP2, ident.Detect, ident.TCP} {
		o := newOrigin(t, nil)
		l := newLab(t, o.addr, m.guarded(plan.TLSStrict, protocol))
		quiet := func(what string) {
			t.Helper()
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.conns > 0 || len(o.seen) > 0 {
				t.Fatalf("%v: %s: the application was reached: %d connections, %v", protocol, what, o.conns, o.seen)
			}
		}
		for what, bytes := range plain {
			c := l.dial()
			c.send(bytes)
			_ = c.nc.CloseWrite()
			if b, _ := io.ReadAll(c.nc); strings.Contains(string(b), "HTTP/1") || len(b) > 7 { // an alert (RFC 8446 section 6) is all that there is to say
				t.Errorf("%v: %s: it was answered %q", protocol, what, b)
			}
			quiet(what)
		}
		for what, cfg := range secure {
			c := l.dial()
			tc := tls.Client(c.nc, cfg)
			if err := tc.Handshake(); err == nil { // the client of TLS 1.3 hears later that it was refused
				_, _ = io.WriteString(tc, knock)
				if b, err := io.ReadAll(tc); err == nil || len(b) > 0 {
					t.Errorf("%v: %s: it was answered %q, %v", protocol, what, b, err)
				}
			}
			quiet(what)
		}
		// The same from a workload of the mesh is heard, by any name of the server.
		for _, name := range []string{"b", "", "evil.example", strings.Repeat("a.", 120) + "a", "127.0.0.1"} {
			cfg := m.secure(good, trust.ALPNHTTP1)
			if protocol == ident.TCP {
				cfg.NextProtos = []string{trust.ALPNOpaque}
			}
			cfg.ServerName = name
			tc := tls.Client(l.dial().nc, cfg)
			_, _ = io.WriteString(tc, knock)
			if a, err := readHead(bufio.NewReader(tc), false); err != nil || a.status != 200 {
				t.Errorf("%v: server name %.20q: %v, %v", protocol, name, a, err)
			}
		}
	}
}

// A client that says that it speaks no HTTP is not spared what is said about HTTP: where a rule needs to know the request and cannot,
// nobody is let in, and nobody who is denied slips by.
func TestOpaqueIsNoWayAroundRules(t *testing.T) {
	apart(t)
	m := newMesh(t, nil)
	path := []plan.Operation{{Paths: []match.String{{Kind: match.Exact, Value: "/admin"}}}}
	for name, policy := range map[string]plan.Policy{
		"denied path":     {Name: "default/p", Action: plan.Deny, Rules: []plan.PolicyRule{{To: path}}},
		"denied method":   {Name: "default/p", Action: plan.Deny, Rules: []plan.PolicyRule{{To: []plan.Operation{{NotMethods: []match.String{{Kind: match.Exact, Value: "HEAD"}}}}}}},
		"allowed path":    {Name: "default/p", Action: plan.Allow, Rules: []plan.PolicyRule{{To: []plan.Operation{{Paths: []match.String{{Kind: match.Exact, Value: "/public"}}}}}}},
		"denied identity": {Name: "default/p", Action: plan.Deny, Rules: []plan.PolicyRule{{From: []plan.Source{{Principals: []match.String{{Kind: match.Exact, Value: one("a").Principal()}}}}}}},
		"another allowed": {Name: "default/p", Action: plan.Allow, Rules: []plan.PolicyRule{{From: []plan.Source{{Principals: []match.String{{Kind: match.Exact, Value: one("c").Principal()}}}}}}},
	} {
		for _, protocol := range []ident.Protocol{ident.HTTP, ident.Detect} {
			for _, mode := range []plan.TLSMode{plan.TLSStrict, plan.TLSPermissive} {
				o := newOrigin(t, nil)
				l := newLab(t, o.addr, m.guarded(mode, protocol, policy))
				for _, alpn := range []string{trust.ALPNOpaque, trust.ALPNHTTP1, trust.ALPNHTTP2} {
					for _, request := range []string{"GET /admin HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n", "\x00GET /admin HTTP/1.1\r\nhost: a\r\n\r\n",
						http2.ClientPreface + string(frame(http2.FrameSettings, 0, 0, nil)) + string(open(1, true, raw(":method", "GET", ":scheme", "http", ":path", "/admin", ":authority", "a")))} {
						c := l.dial()
						tc := tls.Client(c.nc, m.secure(m.as("a"), alpn))
						_, _ = io.WriteString(tc, request)
						_ = tc.CloseWrite()
						_, _ = io.Copy(io.Discard, tc)
						for _, seen := range o.take() {
							t.Errorf("%s, %v, %v: %s with %.16q came through: %s", name, protocol, mode, alpn, request, seen.line)
						}
					}
				}
			}
		}
	}
}

// spellings are names that programs may read as the same field: CGI and its kin (RFC 3875 section 4.1.18) write "-" as "_".
func spellings(name string) []string {
	all := []string{name, strings.ReplaceAll(name, "-", "_")}
	if i := strings.IndexByte(name, '-'); i >= 0 {
		all = append(all, strings.Replace(name, "-", "_", 1), name[:i+1]+strings.ReplaceAll(name[i+1:], "-", "_"))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// title writes a name as old clients do.
func title(name string) string {
	b := []byte(name)
	for i := range b {
		if (i == 0 || b[i-1] == '-' || b[i-1] == '_') && b[i] >= 'a' && b[i] <= 'z' {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

// Who somebody is says the certificate: a header that says it is a proxy's, in whichever spelling, from outside and from workloads.
func TestIdentityHeadersAreOurs(t *testing.T) {
	apart(t)
	const lie = "By=spiffe://cluster.local/ns/default/sa/b;URI=spiffe://cluster.local/ns/admin/sa/root"
	m := newMesh(t, nil)
	requests := func(names []string) (http1 []string, h2 [][]byte) {
		for _, name := range names {
			for _, spelled := range []string{name, title(name), strings.ToUpper(name)} {
				http1 = append(http1, "GET / HTTP/1.1\r\nhost: a\r\n"+spelled+": "+lie+"\r\n\r\n",
					"GET / HTTP/1.1\r\nhost: a\r\n"+spelled+": x\r\n"+spelled+": "+lie+"\r\n\r\n",
					"GET / HTTP/1.1\r\nhost: a\r\nconnection: x-other, "+name+"\r\n"+spelled+": "+lie+"\r\n\r\n",
					"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: "+name+"\r\n\r\n0\r\n"+spelled+": "+lie+"\r\n\r\n")
			}
			h2 = append(h2, raw(with(get, name, lie)...), raw(with(get, name, "x", name, lie)...))
		}
		return http1, h2
	}
	check := func(t *testing.T, o *origin, want string) {
		t.Helper()
		for _, got := range o.take() {
			for _, f := range append(slices.Clone(got.fields), got.trailers...) {
				if strings.Contains(f[1], "root") {
					t.Errorf("the application is told %s: %s (%s)", f[0], f[1], got.line)
				}
			}
			if want == "" {
				continue
			}
			if n := got.count("x-forwarded-client-cert"); n != 1 || got.get("x-forwarded-client-cert") != want {
				t.Errorf("the application is told %d of x-forwarded-client-cert: %q, want %q", n, got.get("x-forwarded-client-cert"), want)
			}
		}
	}
	cert := append(spellings("x-forwarded-client-cert"), spellings("l5d-client-id")...)
	http1, h2 := requests(cert)
	certified := "By=" + one("b").URI() + ";URI=" + one("a").URI()

	t.Run("workload", func(t *testing.T) {
		for mode, wants := range map[plan.TLSMode]string{plan.TLSStrict: certified, plan.TLSPermissive: ""} {
			o := newOrigin(t, nil)
			l := newLab(t, o.addr, m.guarded(mode, ident.HTTP))
			dial := func(alpn string) net.Conn {
				nc := net.Conn(l.dial().nc)
				if mode == plan.TLSStrict {
					nc = tls.Client(nc, m.secure(m.as("a"), alpn))
				}
				return nc
			}
			for _, request := range http1 {
				nc := dial(trust.ALPNHTTP1)
				_, _ = io.WriteString(nc, request)
				if _, err := readHead(bufio.NewReader(nc), false); err != nil {
					t.Fatal(err)
				}
				_ = nc.Close()
			}
			c := newH2peer(t, dial(trust.ALPNHTTP2))
			_ = c.send([]byte(http2.ClientPreface), frame(http2.FrameSettings, 0, 0, nil))
			for i, block := range h2 {
				_ = c.send(open(id(uint32(i)), true, block))
				c.until(id(uint32(i)))
			}
			check(t, o, wants)
		}
	})

	// From the internet nothing of what proxies say to each other is believed.
	t.Run("edge", func(t *testing.T) {
		names := slices.Clone(cert)
		for _, n := range []string{"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-envoy-original-path", "x-envoy-external-address", "x-envoy-internal",
			"x-envoy-decorator-operation", "x-envoy-upstream-rq-timeout-ms", "x-envoy-retry-on", "x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-malha-explain", "x-malha-origin"} {
			names = append(names, spellings(n)...)
		}
		http1, h2 := requests(names)
		o := newOrigin(t, nil)
		l := newLab(t, o.addr, planned(func(p *plan.Plan) { p.Listeners[0].Direction = plan.Edge }))
		for _, request := range http1 {
			c := l.dial()
			c.send(request)
			c.must("GET")
			_ = c.nc.Close()
		}
		c := l.dialH2()
		for i, block := range h2 {
			_ = c.send(open(id(uint32(i)), true, block))
			c.until(id(uint32(i)))
		}
		check(t, o, "")
	})
}
