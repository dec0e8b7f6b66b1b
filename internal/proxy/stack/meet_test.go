package stack

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// met returns the hash of a request to a cluster, and the cookie that its client is given.
func met(h *plan.Hash, query, client string, headers ...string) (hash uint64, has bool, cookie string) {
	x := &exchange{req: &message.Request{Query: []byte(query)}, client: netip.MustParseAddr(client), p: &conn.Peer{}}
	for i := 0; i < len(headers); i += 2 {
		x.req.Fields.Add(headers[i], []byte(headers[i+1]))
	}
	x.rec.Cluster = &plan.Cluster{Hash: h}
	x.meet()
	var fs message.Fields
	x.giveCookie(&fs)
	v, _ := fs.Get("set-cookie")
	return x.attempt.Hash, x.attempt.HasHash, string(v)
}

func TestHashKey(t *testing.T) {
	all := &plan.Hash{Header: "x-user", Cookie: &plan.Cookie{Name: "id"}, Query: "q", SourceIP: true}
	of := func(v string) uint64 {
		h, _, _ := met(&plan.Hash{Header: "k"}, "", "::1", "k", v)
		return h
	}
	for _, tc := range []struct {
		name    string
		h       *plan.Hash
		query   string
		headers []string
		want    string // value whose hash it is; "" none
	}{
		{"header", all, "q=2", []string{"x-user", "1", "cookie", "id=3"}, "1"},
		{"cookie", all, "q=2", []string{"cookie", "a=b; id=3; c=d"}, "3"},
		{"cookie in quotes", all, "q=2", []string{"cookie", `xid=2; id="3"`}, "3"},
		{"cookies of HTTP/2", all, "q=2", []string{"cookie", "a=b", "cookie", "id=3"}, "3"},
		{"a name that ends alike is another", all, "q=2", []string{"cookie", "xid=3"}, "2"},
		{"query", all, "p=1&q=%32&q=5", nil, "2"},
		{"nothing", &plan.Hash{Header: "x-user"}, "", nil, ""},
		{"no cookie, and none is made", &plan.Hash{Cookie: &plan.Cookie{Name: "id"}}, "", nil, ""},
		{"no hash", nil, "", []string{"x-user", "1"}, ""},
	} {
		h, has, cookie := met(tc.h, tc.query, "192.0.2.1", tc.headers...)
		if has != (tc.want != "") || has && h != of(tc.want) || cookie != "" {
			t.Errorf("%s: %d, %v, cookie %q", tc.name, h, has, cookie)
		}
	}
	a, _, _ := met(all, "", "192.0.2.1")
	b, _, _ := met(all, "", "192.0.2.1")
	c, has, _ := met(all, "", "192.0.2.2")
	if a != b || a == c || !has {
		t.Errorf("source addresses: %d %d %d", a, b, c)
	}
	// All proxies of a mesh, of all versions, must agree.
	if h := of("user-1"); h != 0xc499b5f8a721df58 {
		t.Errorf("the hash has changed: %#x", h)
	}
}

func TestHashCookieIsGiven(t *testing.T) {
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("c")}},
		apps:   map[string][]http.HandlerFunc{"c": {says("well")}},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP, Hash: &plan.Hash{Cookie: &plan.Cookie{Name: "id", Path: "/p", HasTTL: true,
			TTL: plan.Duration(90 * time.Second), Attributes: []string{"SameSite=Strict", "Secure"}}}}},
	})
	resp, _ := r.do("GET", "/", "")
	cs := resp.Cookies()
	if len(cs) != 1 || cs[0].Name != "id" || len(cs[0].Value) < 8 || cs[0].MaxAge != 90 || cs[0].Path != "/p" || !cs[0].HttpOnly || !cs[0].Secure || cs[0].SameSite != http.SameSiteStrictMode {
		t.Fatalf("cookies: %v", resp.Header["Set-Cookie"])
	}
	if resp, _ := r.do("GET", "/", "", "cookie: id="+cs[0].Value); len(resp.Cookies()) != 0 {
		t.Errorf("who has one gets another: %v", resp.Header)
	}
	if resp, _ := r.do("GET", "/", ""); resp.Cookies()[0].Value == cs[0].Value {
		t.Error("two clients get the same cookie")
	}
}

// Clusters that go where they are asked to, and PROXY protocol headers, need to know of the request and of its client.
func TestAttemptTellsTheRequest(t *testing.T) {
	for _, tc := range []struct {
		port   int
		scheme string
		c      plan.Cluster
		want   int
	}{{81, "http", plan.Cluster{Port: 9080}, 81}, {0, "http", plan.Cluster{Port: 9080}, 9080}, {0, "http", plan.Cluster{}, 80}, {0, "https", plan.Cluster{}, 443}} {
		x := &exchange{req: &message.Request{Host: []byte("h.example"), Port: tc.port, Scheme: []byte(tc.scheme)},
			p: &conn.Peer{Remote: netip.MustParseAddrPort("192.0.2.1:1"), Local: netip.MustParseAddrPort("192.0.2.2:2")}}
		x.rec.Cluster = &tc.c
		x.meet()
		if a := x.attempt; string(a.Host) != "h.example" || a.Port != tc.want || a.Source != x.p.Remote || a.Target != x.p.Local {
			t.Errorf("%+v: %+v", tc, a)
		}
	}
}

// A retry may leave the locality of what failed when its rule says so, and the first try may not.
func TestFartherIsForRetries(t *testing.T) {
	for _, farther := range []bool{false, true} {
		x := &exchange{}
		x.rec.Route = &plan.Route{Retry: &plan.Retry{Attempts: 1, Farther: farther, BackoffBase: 1}}
		if x.attempt.Farther {
			t.Error("the first try goes farther")
		}
		if x.pause(); x.attempt.Farther != farther {
			t.Errorf("a retry goes farther: %v, want %v", x.attempt.Farther, farther)
		}
	}
}
