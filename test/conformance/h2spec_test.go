package conformance

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/summerwind/h2spec/client"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/testport"
)

// tally is how a suite ended.
type tally struct {
	passed int
	judged int      // of them, by forgive
	bad    []string // failed and skipped
}

func (t *tally) add(name string, failed, skipped bool, err error) {
	switch {
	case failed:
		t.bad = append(t.bad, fmt.Sprintf("%s: %v", name, err))
	case skipped:
		t.bad = append(t.bad, name+": skipped")
	default:
		t.passed++
	}
}

// forgive judges by other means a case that the suite can't judge.
func (t *tally) forgive(tt *testing.T, id string, judge func() error) {
	tt.Helper()
	for i, b := range t.bad {
		if !strings.HasPrefix(b, id+" ") {
			continue
		}
		if err := judge(); err != nil {
			tt.Errorf("%s, judged by ourselves: %v", id, err)
			return
		}
		t.bad = append(t.bad[:i], t.bad[i+1:]...)
		t.passed++
		t.judged++
		return
	}
}

// closesOnBadPreface is case http2/3.5/2 for a port that speaks both versions of HTTP. What does not begin like the preface
// is HTTP/1 there, and a malformed request line is answered by a 400 before the connection is closed, as the case
// demands; the suite trips over the 400, which is no frame.
func closesOnBadPreface(addr string) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := io.WriteString(nc, "INVALID CONNECTION PREFACE\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(nc)
	if err != nil {
		return fmt.Errorf("the connection was not closed: %w", err)
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}

// TestServer runs h2spec, strict cases too, against each kind of listener, with an endpoint of each version of HTTP.
func TestServer(t *testing.T) {
	app := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "hello from behind the proxy")
	}))
	a := newAuthority(t)
	serverDir, clientDir := a.issue(t, serverIdentity), a.issue(t, clientIdentity)
	tables.WriteString("| listener | endpoint | passed of 146 | of them judged by ourselves |\n|---|---|---|---|\n")
	for _, tt := range []struct {
		name string
		d    plan.Direction
		tls  bool
	}{{"inbound, plaintext on a permissive port", plan.Inbound, false}, {"inbound, mutual TLS", plan.Inbound, true},
		{"outbound", plan.Outbound, false}, {"gateway", plan.Edge, false}, {"gateway, TLS", plan.Edge, true}} {
		for _, proto := range []ident.Protocol{ident.HTTP, ident.HTTP2} {
			endpoint := map[ident.Protocol]string{ident.HTTP: "HTTP/1.1", ident.HTTP2: "HTTP/2"}[proto]
			t.Run(tt.name+"/"+endpoint, func(t *testing.T) {
				p := newPlan(tt.d, proto, app, serverIdentity)
				p.Listeners[0].Bind = testport.Address(t)
				if tt.tls && tt.d == plan.Edge {
					endTLS(t, p, serverDir)
				}
				startProxy(t, p, "--identity", serverDir)
				at := p.Listeners[0].Bind
				if tt.tls && tt.d == plan.Inbound {
					at = startRelay(t, clientDir, at)
				}
				run := func() tally {
					got := runServerSpec(t, at, tt.tls && tt.d == plan.Edge)
					if !tt.tls {
						got.forgive(t, "http2/3.5/2", func() error { return closesOnBadPreface(at) })
					}
					return got
				}
				got := run()
				if failed := len(got.bad); failed > 0 && failed < 4 {
					// The suite judges by what arrives within a time; on a busy machine that can be too little. A run in which few
					// cases failed is made again, and counts.
					t.Logf("failed, and is run again: %q", got.bad)
					got = run()
				}
				for _, b := range got.bad {
					t.Error(b)
				}
				if got.passed != 146 {
					t.Errorf("%d of 146 passed", got.passed)
				}
				fmt.Fprintf(&tables, "| %s | %s | %d | %d |\n", tt.name, endpoint, got.passed, got.judged)
			})
		}
	}
}

func runServerSpec(t *testing.T, addr string, tls bool) tally {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Host: host, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true, TLS: tls, Insecure: true}
	if c.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	var sum tally
	var walk func(g *spec.TestGroup)
	walk = func(g *spec.TestGroup) {
		for _, tc := range append(g.Tests, g.StrictTests...) {
			if r := tc.Result; r != nil {
				sum.add(fmt.Sprintf("%s/%d %s", g.ID(), r.Sequence, tc.Desc), r.Failed, r.Skipped, r.Error)
			}
		}
		for _, sub := range g.Groups {
			walk(sub)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		g.Test(c)
		walk(g)
	}
	return sum
}

// TestClient runs the suite for clients: for each case the proxy forwards one request to a server of the suite.
func TestClient(t *testing.T) {
	suite := client.Spec()
	// The suite wants a port for each case, in a row: an address of their own, below the ports that the kernel gives away.
	host := fmt.Sprintf("127.57.%d.%d", os.Getpid()>>8&255, os.Getpid()&255)
	c := &config.Config{Host: host, Timeout: time.Second, MaxHeaderLen: 4000, FromPort: 20000, Exec: "true"}
	s, err := spec.Listen(c, suite)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	var cases []*spec.ClientTestCase
	var walk func(g *spec.ClientTestGroup)
	walk = func(g *spec.ClientTestGroup) {
		cases = append(cases, g.Tests...)
		for _, sub := range g.Groups {
			walk(sub)
		}
	}
	walk(suite)

	p := newPlan(plan.Outbound, ident.HTTP2, "127.0.0.1:1", clientIdentity)
	p.Listeners[0].Bind = testport.Address(t)
	p.Clusters, p.Endpoints, p.Routes[0].Hosts[0].Routes = nil, nil, nil
	for i, tc := range cases {
		tc.Done = make(chan bool, 4) // before anybody connects
		name := fmt.Sprintf("case%03d", i)
		p.Clusters = append(p.Clusters, plan.Cluster{Name: name, Host: name, Port: tc.Port, Protocol: ident.HTTP2})
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: name, Endpoints: []plan.Endpoint{{Address: fmt.Sprintf("%s:%d", host, tc.Port)}}})
		p.Routes[0].Hosts[0].Routes = append(p.Routes[0].Hosts[0].Routes, plan.Route{Name: name, Forward: []plan.Destination{{Cluster: name}},
			Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: "/" + name}}})
	}
	startProxy(t, p)

	var sum tally
	requests := &http.Client{Timeout: 5 * time.Second}
	for i, tc := range cases {
		// How the request ends is the proxy's business: the suite judges what the proxy did to its server.
		if resp, err := requests.Get(fmt.Sprintf("http://%s/case%03d", p.Listeners[0].Bind, i)); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		name := fmt.Sprintf("%s/%d %s", tc.Parent.ID(), tc.Seq, tc.Desc)
		select {
		case <-tc.Done:
			sum.add(name, tc.Result.Failed, tc.Result.Skipped, tc.Result.Error)
		case <-time.After(time.Minute):
			sum.bad = append(sum.bad, name+": the proxy never connected, or the case did not end")
		}
	}
	for _, b := range sum.bad {
		t.Error(b)
	}
	if sum.passed != 57 {
		t.Errorf("%d of 57 passed", sum.passed)
	}
	fmt.Fprintf(&tables, "\n| client side | passed of 57 |\n|---|---|\n| malha-proxy towards an HTTP/2 endpoint | %d |\n", sum.passed)
}
