package live_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// total adds up the samples of a name that have all of these labels.
func total(t *testing.T, rec *telemetry.Recorder, name string, labels ...string) (sum int) {
	t.Helper()
	var page bytes.Buffer
	if _, err := rec.WriteTo(&page); err != nil {
		t.Fatal(err)
	}
next:
	for l := range strings.Lines(page.String()) {
		if !strings.HasPrefix(l, name+"{") {
			continue
		}
		for _, want := range labels {
			if !strings.Contains(l, want) {
				continue next
			}
		}
		n, err := strconv.Atoi(strings.TrimSpace(l[strings.LastIndexByte(l, ' '):]))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// Both ends of a call count it exactly, and as the same thing: by status, whatever is spoken, while the plans of both proxies
// are put in force anew.
func TestBothEndsCountTheSame(t *testing.T) {
	labels := plan.ServiceLabels{Host: "backend.production.svc.cluster.local", Name: "backend", Namespace: "production"}
	for _, proto := range []ident.Protocol{ident.HTTP, ident.HTTP2} {
		t.Run(proto.String(), func(t *testing.T) {
			a := newAuthority(t)
			program := app(t, func(w http.ResponseWriter, r *http.Request) {
				n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
				w.WriteHeader(n)
			})
			// The plans differ each time, so that they are put in force.
			in := func(version int) *plan.Plan {
				p := inbound(program, plan.TLSStrict, ident.HTTP)
				p.Clusters[0].Service = labels
				p.Routes[0].Hosts[0].Routes[0].Name = strconv.Itoa(version)
				p.Listeners[0].Policies = []string{"production/p"}
				p.Policies = []plan.Policy{{Name: "production/p", Action: plan.Deny, Rules: []plan.PolicyRule{{
					To: []plan.Operation{{Paths: []match.String{{Kind: match.Exact, Value: "/201"}}}},
				}}}}
				return p
			}
			server, client := telemetry.New(telemetry.Options{}), telemetry.New(telemetry.Options{})
			callee, at := start(t, live.Options{Credentials: a.issue(t, backend), Recorder: server}, in(0))
			out := func(version int) *plan.Plan {
				p := simple(at["in"])
				p.Node.Identity = frontend
				p.Routes[0].Hosts[0].Routes[0].Name = strconv.Itoa(version)
				p.Clusters[0].Protocol, p.Clusters[0].Service = proto, labels
				p.Endpoints[0].Endpoints[0].Identity = backend
				return p
			}
			caller, outAt := start(t, live.Options{Credentials: a.issue(t, frontend), Recorder: client}, out(0))

			send := map[int]int{200: 31, 503: 7, 404: 3, 201: 2}
			c := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
			defer c.CloseIdleConnections()
			i := 0
			for status, n := range send {
				for range n {
					want := status
					if status == 201 {
						want = 403
					}
					if resp, _ := get(t, c, "http://"+outAt["out"]+"/"+strconv.Itoa(status)); resp.StatusCode != want {
						t.Fatalf("%d, want %d", resp.StatusCode, want)
					}
					if i++; i%10 == 0 {
						if err := callee.Apply(in(i)); err != nil {
							t.Fatal(err)
						}
						if err := caller.Apply(out(i)); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			drain(t, caller)
			drain(t, callee)
			send[403], send[201] = send[201], 0
			for status, n := range send {
				code := fmt.Sprintf(`response_code="%d"`, status)
				for rec, words := range map[*telemetry.Recorder][]string{
					client: {`reporter="source"`, `connection_security_policy="unknown"`},
					server: {`reporter="destination"`, `connection_security_policy="mutual_tls"`},
				} {
					words = append(words, code, `destination_service="backend.production.svc.cluster.local"`,
						`source_principal="`+frontend.URI()+`"`, `destination_principal="`+backend.URI()+`"`)
					if got := total(t, rec, "istio_requests_total", words...); got != n {
						t.Errorf("%v: %d requests, want %d", words[:3], got, n)
					}
					if got := total(t, rec, "istio_request_duration_milliseconds_count", words...); got != n {
						t.Errorf("%v: %d durations, want %d", words[:3], got, n)
					}
				}
			}
			for _, rec := range []*telemetry.Recorder{client, server} {
				if got := total(t, rec, "istio_requests_total"); got != 43 {
					t.Errorf("%d requests in all, want 43", got)
				}
			}
		})
	}
}

func drain(t *testing.T, px *live.Proxy) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	px.Drain(ctx)
}

// A tunnel for a host that the mesh lets pass, and that can't be reached, counts as one that passed.
func TestTunnelThatIsNotReached(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := ln.Addr().String()
	_ = ln.Close()
	p := simple(gone)
	p.Listeners = []plan.Listener{{Name: "forward", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true,
		Ports: []plan.ForwardPort{{Port: 80, Protocol: ident.HTTP, Routes: "t"}}}}
	p.Routes[0].Otherwise = plan.Passthrough
	rec := telemetry.New(telemetry.Options{})
	px, at := start(t, live.Options{Recorder: rec}, p)
	nc, err := net.Dial("tcp", at["forward"])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_, _ = fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", gone, gone)
	resp, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: "CONNECT"})
	if err != nil || resp.StatusCode != 503 {
		t.Fatalf("%v %v", resp, err)
	}
	_ = nc.Close()
	drain(t, px)
	if got := total(t, rec, "istio_requests_total", `destination_service_name="PassthroughCluster"`, `response_flags="UF"`); got != 1 {
		t.Errorf("%d requests", got)
	}
}
