package live_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// apps is how many applications share the versions of TestUpdatesUnderLoad.
const apps = 8

// version is a plan whose every part says n: the cluster and its endpoint, the headers of the route on both ways, those of the
// destination, the policy that lets the request in, and the certificate of the door.
func version(n int, at [apps]string, secrets [2]plan.Secret) *plan.Plan {
	tag := strconv.Itoa(n)
	p := edgePlan([]plan.ServerName{ends("n/web", "t", "web.example")}, secrets[n%2])
	goes(p, "c"+tag, at[n%apps])
	p.Routes[0].Name = "t"
	r := &p.Routes[0].Hosts[0].Routes[0]
	r.Headers.Request.Set = []plan.Field{{Name: "x-route", Value: tag}}
	r.Headers.Response.Set = []plan.Field{{Name: "x-route-back", Value: tag}}
	r.Forward[0].Headers.Request.Set = []plan.Field{{Name: "x-destination", Value: tag}}
	// The policy keeps everybody from the path that the routes call a trap: who gets there passed by another version's policy.
	path := match.String{Kind: match.Exact, Value: "/" + tag}
	trap := plan.Route{Name: "trap", Match: plan.Match{Path: &path}, Direct: &plan.DirectResponse{Status: 418}}
	p.Routes[0].Hosts[0].Routes = append([]plan.Route{trap}, *r)
	p.Policies = []plan.Policy{{Name: "n/p", Action: plan.Deny, Rules: []plan.PolicyRule{{To: []plan.Operation{{Paths: []match.String{path}}}}}}}
	plain := plan.Listener{Name: "plain", Bind: "127.0.0.1:0", Direction: plan.Edge, Protocol: ident.HTTP, Port: 80, Routes: "t"}
	p.Listeners = append(p.Listeners, plain)
	for i := range p.Listeners {
		p.Listeners[i].Policies = []string{"n/p"}
	}
	return p
}

// TestUpdatesUnderLoad changes everything again and again while requests go through two doors: none fails, and none is judged by
// parts of two versions. MALHA_LONG=1 makes it 1,000 changes at 50 a second.
func TestUpdatesUnderLoad(t *testing.T) {
	changes := 60
	if os.Getenv("MALHA_LONG") != "" {
		changes = 1000
	}
	a := newAuthority(t)
	var secrets [2]plan.Secret
	for i := range secrets {
		secrets[i], _ = a.secret(t, "n/web", "web.example")
	}
	var at [apps]string
	for i := range at {
		at[i] = app(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprintf(w, "%d %s %s", i, r.Header.Get("x-route"), r.Header.Get("x-destination"))
		})
	}
	px, doors := start(t, live.Options{Credentials: trust.Static{}}, version(0, at, secrets))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var asked, denied, latest atomic.Int64
	traffic := func(c *http.Client, url string) {
		for ahead := int64(0); ctx.Err() == nil; ahead = 1 - ahead {
			before := latest.Load()
			req, err := http.NewRequest("GET", url+strconv.FormatInt(before+ahead, 10), nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Host = "web.example"
			resp, err := c.Do(req)
			if err != nil {
				t.Errorf("a request failed: %v", err)
				return
			}
			b, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusForbidden {
				denied.Add(1)
				continue
			}
			back := resp.Header.Get("x-route-back")
			n, _ := strconv.Atoi(back)
			if want := fmt.Sprintf("%d %s %s", n%apps, back, back); err != nil || resp.StatusCode != 200 || string(b) != want {
				t.Errorf("status %d, %q, %v; want %q", resp.StatusCode, b, err, want)
				return
			}
			if int64(n) < before {
				t.Errorf("a request that began after version %d was in force was judged by version %d", before, n)
				return
			}
			asked.Add(1)
		}
	}
	for range 3 {
		plain, secure := client(t), tlsClient(t, a, "web.example", true)
		wg.Go(func() { traffic(plain, "http://"+doors["plain"]+"/") })
		wg.Go(func() { traffic(secure, "https://"+doors["edge"]+"/") })
		fresh := tlsClient(t, a, "web.example", false)
		fresh.Transport.(*http.Transport).DisableKeepAlives = true
		wg.Go(func() { traffic(fresh, "https://"+doors["edge"]+"/") })
	}
	for n := int64(1); n <= int64(changes) && !t.Failed(); n++ {
		// No change before somebody has seen the last one, however long that takes.
		for by := time.Now().Add(time.Minute); (asked.Load() < n || denied.Load() < n) && !t.Failed() && time.Now().Before(by); {
			time.Sleep(time.Millisecond)
		}
		if err := px.Apply(version(int(n), at, secrets)); err != nil {
			t.Fatal(err)
		}
		latest.Store(n)
	}
	stop()
	wg.Wait()
	if asked.Load() < int64(changes) || denied.Load() < int64(changes) {
		t.Errorf("only %d requests went through %d changes, and %d were denied", asked.Load(), changes, denied.Load())
	}
	t.Logf("%d changes, %d requests, %d denied", changes, asked.Load(), denied.Load())
}
