package stack

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// met returns the hash of a request to a cluster, and the cookie that its client is given.
func met(h *plan.Hash, query, client string, headers ...string) (hash uint64, has bool, cookie string) {
	x := &exchange{req: &message.Request{Query: []byte(query)}, client: netip.MustParseAddr(client)}
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
