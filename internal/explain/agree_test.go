package explain_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// running runs a proxy with a plan and returns the address of its first listener.
func running(t *testing.T, p *plan.Plan) string {
	t.Helper()
	px := live.New(live.Options{DrainTime: time.Second})
	if err := px.Apply(p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = px.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return px.Status().Listeners[0].Address.String()
}

// What a walk says about a request is what a proxy with the same plan does with it.
func TestAgreesWithTheProxy(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s%s", r.Method, r.Host, r.URL.Path)
	}))
	defer app.Close()
	code := 5
	route := func(path string, r plan.Route) plan.Route {
		r.Match.Path = &match.String{Kind: match.Segment, Value: path}
		if r.Forward == nil && r.Redirect == nil && r.Direct == nil {
			r.Forward = []plan.Destination{{Cluster: "c"}}
		}
		return r
	}
	none := plan.RateLimit{Name: "none", Rules: []plan.RateLimitRule{{Per: plan.Duration(time.Second), Matches: []plan.Match{{Method: &match.String{Kind: match.Exact, Value: "PUT"}}}}}}
	p := &plan.Plan{
		Node:      plan.Node{Name: ident.Name{Namespace: "ns", Name: "gw"}, Role: plan.Gateway},
		Listeners: []plan.Listener{{Name: "http", Bind: "127.0.0.1:0", Port: 80, Direction: plan.Edge, Protocol: ident.HTTP, Routes: "t"}},
		Routes: []plan.RouteTable{{Name: "t", Hosts: []plan.VirtualHost{{Name: "h", Domains: []string{"a.example", "*.wild.example"}, Routes: []plan.Route{
			route("/regex", plan.Route{Rewrite: &plan.Rewrite{Regex: `^/regex/(\w+)`, Substitution: `/\1/x`}}),
			route("/dots", plan.Route{Rewrite: &plan.Rewrite{Regex: `^/dots`, Substitution: `/..`}}),
			route("/authority", plan.Route{Rewrite: &plan.Rewrite{Path: "/", Authority: "b.example"}}),
			route("/own", plan.Route{Rewrite: &plan.Rewrite{Path: "/rule"}, Forward: []plan.Destination{{Cluster: "c", Rewrite: &plan.Rewrite{Path: "/destination"}}}}),
			route("/own-redirect", plan.Route{Rewrite: &plan.Rewrite{Path: "/rule"}, Forward: []plan.Destination{{Cluster: "c", Redirect: &plan.Redirect{Status: 307, Path: "/y", Port: 81}}}}),
			route("/lost-redirect", plan.Route{Forward: []plan.Destination{{Cluster: "no-such", Redirect: &plan.Redirect{Status: 307}, CORS: &plan.CORS{Origins: []match.String{{Kind: match.Present}}}}}}),
			route("/own-cors", plan.Route{CORS: &plan.CORS{}, Forward: []plan.Destination{{Cluster: "c", CORS: &plan.CORS{Origins: []match.String{{Kind: match.Suffix, Value: ".example"}}}}}}),
			route("/redirect", plan.Route{Redirect: &plan.Redirect{Status: 302, Path: "/x", Scheme: "https", KeepPort: true}}),
			route("/direct", plan.Route{Direct: &plan.DirectResponse{Status: 418}}),
			route("/invalid", plan.Route{Forward: []plan.Destination{{Status: 500}}}),
			route("/nowhere", plan.Route{Forward: []plan.Destination{{Cluster: "no-such"}}}),
			route("/empty", plan.Route{Forward: []plan.Destination{{Cluster: "empty"}}}),
			route("/fault", plan.Route{Fault: &plan.Fault{AbortGRPC: &code, AbortPercent: 100}}),
			route("/limit", plan.Route{Limits: []string{"none"}, Fault: &plan.Fault{AbortStatus: 418, AbortPercent: 100}}),
			route("/no-limit", plan.Route{Limits: []string{"gone"}}),
			route("/cors", plan.Route{CORS: &plan.CORS{Origins: []match.String{{Kind: match.Suffix, Value: ".example"}}}, Limits: []string{"none"}}),
		}}}}},
		Clusters:  []plan.Cluster{{Name: "c", Protocol: ident.HTTP}, {Name: "empty", Protocol: ident.HTTP}},
		Endpoints: []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: strings.TrimPrefix(app.URL, "http://")}}}},
		Limits:    []plan.RateLimit{none},
	}
	mesh, err := explain.New([]*plan.Plan{p})
	if err != nil {
		t.Fatal(err)
	}
	address := running(t, p)
	client := &http.Client{Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()

	answered := 0
	for _, host := range []string{"a.example", "x.wild.example", "a.example:81", "other.example"} {
		for _, path := range []string{"/regex/a/b", "/regex", "/dots/a", "/authority/a", "/own", "/redirect/a?q=1", "/direct", "/invalid", "/nowhere", "/empty", "/fault", "/limit",
			"/no-limit", "/cors", "/own-redirect/a?q=1", "/lost-redirect", "/own-cors", "/else", "/own/%2e%2e/direct"} {
			for _, method := range []string{"GET", "PUT", "OPTIONS"} {
				headers := []explain.Header{{Name: "origin", Value: "https://p.example"}, {Name: "access-control-request-method", Value: "PUT"}}
				w, err := mesh.Request(p.Node.Name, explain.Request{Method: method, URL: "http://a.example" + path, Client: netip.MustParseAddr("127.0.0.1"),
					Headers: append(headers, explain.Header{Name: "host", Value: host})})
				if err != nil {
					t.Fatal(err)
				}
				if len(w.Outcomes) != 1 {
					t.Fatalf("%s %s%s: outcomes %+v", method, host, path, w.Outcomes)
				}
				want := "200 "
				if a := w.Outcomes[0].Answer; a != nil {
					want = fmt.Sprintf("%d %s", a.Status, a.Location)
					answered++
				} else {
					want += fmt.Sprintf("%s %s%s", w.Branches[0].Method, w.Branches[0].Authority, w.Branches[0].Path)
				}
				req, err := http.NewRequest(method, "http://"+address+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = host
				for _, h := range headers {
					req.Header.Set(h.Name, h.Value)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body := make([]byte, 200)
				n, _ := resp.Body.Read(body)
				_ = resp.Body.Close()
				got := fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("location"))
				if w.Outcomes[0].Answer == nil {
					got = fmt.Sprintf("%d %s", resp.StatusCode, body[:n])
				}
				if got != want {
					t.Errorf("%s %s%s: the proxy says %q, the walk %q", method, host, path, got, want)
				}
			}
		}
	}
	if answered < 50 {
		t.Errorf("only %d answers of the proxy were compared", answered)
	}
}

// What strangers may say at an edge, and what is believed of it where proxies stand in front, decides about rules.
func TestAgreesAboutWhatStrangersSay(t *testing.T) {
	when := func(name string, value match.String, status int) plan.Route {
		return plan.Route{Match: plan.Match{Headers: []plan.FieldMatch{{Name: name, Value: value}}}, Direct: &plan.DirectResponse{Status: status}}
	}
	present := match.String{Kind: match.Present}
	for _, hops := range []uint32{0, 1, 2} {
		p := &plan.Plan{
			Node:      plan.Node{Name: ident.Name{Namespace: "ns", Name: "gw"}, Role: plan.Gateway},
			Listeners: []plan.Listener{{Name: "http", Bind: "127.0.0.1:0", Port: 80, Direction: plan.Edge, Protocol: ident.HTTP, Routes: "t", TrustedHops: hops}},
			Routes: []plan.RouteTable{{Name: "t", Hosts: []plan.VirtualHost{{Name: "h", Domains: []string{"a.example"}, Routes: []plan.Route{
				when("x-forwarded-proto", match.String{Kind: match.Exact, Value: "https"}, 221),
				when("x-forwarded-proto", match.String{Kind: match.Exact, Value: "gopher"}, 222),
				when("x-forwarded-for", match.String{Kind: match.Exact, Value: "127.0.0.1"}, 223),
				when("x-forwarded-for", match.String{Kind: match.Exact, Value: "192.0.2.9, 192.0.2.8, 127.0.0.1"}, 224),
				when("x-envoy-internal", present, 225),
				when("x_envoy_internal", present, 226),
				when("l5d-client-id", present, 227),
				when("x_malha_origin", present, 228),
				{Direct: &plan.DirectResponse{Status: 229}},
			}}}}},
		}
		mesh, err := explain.New([]*plan.Plan{p})
		if err != nil {
			t.Fatal(err)
		}
		address := running(t, p)
		for _, headers := range [][]explain.Header{
			nil, {{Name: "x-forwarded-proto", Value: "https"}}, {{Name: "x-forwarded-proto", Value: "gopher"}},
			{{Name: "x-forwarded-for", Value: "192.0.2.9"}, {Name: "x-forwarded-for", Value: "192.0.2.8"}}, {{Name: "x-forwarded-for", Value: ""}},
			{{Name: "x-forwarded-for", Value: "192.0.2.7"}, {Name: "x-envoy-internal", Value: "true"}}, {{Name: "x-forwarded-for", Value: "192.0.2.7"}, {Name: "x_envoy_internal", Value: "true"}},
			{{Name: "x-forwarded-for", Value: "192.0.2.7"}, {Name: "l5d-client-id", Value: "a"}}, {{Name: "x-forwarded-for", Value: "192.0.2.7"}, {Name: "x_malha_origin", Value: "a"}},
		} {
			w, err := mesh.Request(p.Node.Name, explain.Request{URL: "http://a.example/", Client: netip.MustParseAddr("127.0.0.1"), Headers: headers})
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequest("GET", "http://"+address, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "a.example"
			for _, h := range headers {
				req.Header.Add(h.Name, h.Value)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if a := w.Answer; a == nil || a.Status != resp.StatusCode {
				t.Errorf("%d hops, %v: the proxy says %d, the walk %+v", hops, headers, resp.StatusCode, a)
			}
		}
	}
}
