package stack

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

func sessions(t *testing.T, s *plan.Session) *rig {
	return newRig(t, setup{
		routes:   []plan.Route{{Forward: to("c")}},
		apps:     map[string][]http.HandlerFunc{"c": {says("a"), says("b"), says("c"), says("d")}},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP, Session: s}},
	})
}

// A client that brings its cookie stays where it was; what it carries tells no address, and garbage leads anywhere.
func TestSessionByCookie(t *testing.T) {
	r := sessions(t, &plan.Session{Cookie: &plan.Cookie{Name: "stay", Path: "/", HasTTL: true, TTL: plan.Duration(time.Hour)}})
	resp, first := r.do("GET", "/", "")
	cs := resp.Cookies()
	if len(cs) != 1 || cs[0].Name != "stay" || cs[0].MaxAge != 3600 || cs[0].Path != "/" || !cs[0].HttpOnly {
		t.Fatalf("cookies: %v", resp.Header["Set-Cookie"])
	}
	if strings.Contains(cs[0].Value, "7f000001") || strings.Contains(cs[0].Value, ".") {
		t.Errorf("the cookie is %q", cs[0].Value)
	}
	for range 40 {
		resp, got := r.do("GET", "/", "", "cookie: a=b; stay="+cs[0].Value)
		if got != first || len(resp.Cookies()) != 0 {
			t.Fatalf("came back to %s from %s, cookies %v", got, first, resp.Header["Set-Cookie"])
		}
	}
	seen := map[string]bool{}
	for range 40 {
		resp, got := r.do("GET", "/", "", "cookie: stay=0000000000000000")
		if seen[got] = true; len(resp.Cookies()) != 1 {
			t.Fatal("who has a wrong cookie gets none")
		}
	}
	if len(seen) < 2 {
		t.Error("a cookie that nobody made leads to one endpoint")
	}
}

func TestSessionByHeader(t *testing.T) {
	r := sessions(t, &plan.Session{Header: "x-session", Idle: plan.Duration(time.Hour)})
	resp, first := r.do("GET", "/", "")
	token := resp.Header.Get("x-session")
	if token == "" {
		t.Fatalf("no token: %v", resp.Header)
	}
	for range 40 {
		resp, got := r.do("GET", "/", "", "x-session: "+token)
		if token = resp.Header.Get("x-session"); got != first || token == "" {
			t.Fatalf("came back to %s from %s with %q", got, first, token)
		}
	}
}

// Renewing the idle time of a session does not prolong it beyond its age.
func TestSessionEndsTwice(t *testing.T) {
	s := &plan.Session{Cookie: &plan.Cookie{Name: "stay", HasTTL: true, TTL: plan.Duration(100 * time.Second)}, Idle: plan.Duration(time.Minute)}
	r := sessions(t, s)
	resp, first := r.do("GET", "/", "")
	c := resp.Cookies()[0]
	token, began, ok := strings.Cut(c.Value, ".")
	if !ok || c.MaxAge != 60 {
		t.Fatalf("cookie %q for %d s", c.Value, c.MaxAge)
	}
	resp, got := r.do("GET", "/", "", "cookie: stay="+c.Value)
	if got != first || len(resp.Cookies()) != 1 || !strings.HasSuffix(resp.Cookies()[0].Value, "."+began) {
		t.Errorf("came back to %s from %s, cookies %v", got, first, resp.Header["Set-Cookie"])
	}
	hex := func(ago time.Duration) string {
		return token + "." + string(appendHex(time.Now().Add(-ago).Unix()))
	}
	if resp, _ := r.do("GET", "/", "", "cookie: stay="+hex(90*time.Second)); resp.Cookies()[0].MaxAge > 11 || resp.Cookies()[0].MaxAge < 1 {
		t.Errorf("10 s before its end the cookie is good for %d s", resp.Cookies()[0].MaxAge)
	}
	seen := map[string]bool{}
	for range 40 {
		_, got := r.do("GET", "/", "", "cookie: stay="+hex(200*time.Second))
		seen[got] = true
	}
	if len(seen) < 2 {
		t.Error("a session that is over leads to one endpoint")
	}
}

func appendHex(n int64) []byte {
	var b []byte
	for ; n > 0; n >>= 4 {
		b = append([]byte{"0123456789abcdef"[n&15]}, b...)
	}
	return b
}

// A cluster's own limit of retries leaves the answer that there is, with the flag that says why it was not tried again.
func TestRetryBudgetOfACluster(t *testing.T) {
	tries := 0
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("c"), Retry: &plan.Retry{Attempts: 3, On: plan.Retry5xx, BackoffBase: 1}}},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) {
			tries++
			w.WriteHeader(599)
		}}},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP, Budget: &plan.ActiveRetries{}}},
	})
	if resp, _ := r.do("GET", "/", ""); resp.StatusCode != 599 || tries != 1 {
		t.Errorf("%d after %d tries", resp.StatusCode, tries)
	}
	if l := r.records()[0]; l["response_flags"] != "UO" {
		t.Errorf("logged: %v", l)
	}
	tries = 0
	r = newRig(t, setup{
		routes: []plan.Route{{Forward: to("c"), Retry: &plan.Retry{Attempts: 3, On: plan.Retry5xx, BackoffBase: 1}}},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) {
			tries++
			w.WriteHeader(599)
		}}},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP, Limits: plan.Limits{MaxRetries: 1}}},
	})
	if resp, _ := r.do("GET", "/", ""); resp.StatusCode != 599 || tries != 4 {
		t.Errorf("with one retry at a time: %d after %d tries, want all 4 of one request", resp.StatusCode, tries)
	}
}
