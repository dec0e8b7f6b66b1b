package stack

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

func path(p string) plan.Match { return plan.Match{Path: &match.String{Kind: match.Exact, Value: p}} }

// every makes a rig in which each path gets another answer of the proxy's own.
func every(t *testing.T, change func(*setup)) *rig {
	code := 14
	c := setup{
		domains: []string{"a.example"},
		routes: []plan.Route{
			{Match: path("/direct"), Origin: at("http[0]"), Direct: &plan.DirectResponse{Status: 200, Body: []byte("x")}},
			{Match: path("/redirect"), Origin: at("http[1]"), Redirect: &plan.Redirect{Status: 301, Path: "/x"}},
			{Match: path("/abort"), Origin: at("http[2]"), Forward: to("c"), Fault: &plan.Fault{AbortStatus: 418, AbortPercent: 100}},
			{Match: path("/abort-grpc"), Origin: at("http[3]"), Forward: to("c"), Fault: &plan.Fault{AbortGRPC: &code, AbortPercent: 100}},
			{Match: path("/limited"), Origin: at("http[4]"), Forward: to("c"), Limits: []string{"none"}},
			{Match: path("/nowhere"), Origin: at("http[5]")},
			{Match: path("/gone"), Origin: at("http[6]"), Forward: to("no-such")},
			{Match: path("/invalid"), Origin: at("http[7]"), Forward: []plan.Destination{{Status: 500}}},
			{Match: path("/empty"), Origin: at("http[8]"), Forward: to("empty")},
			{Match: path("/refused"), Origin: at("http[9]"), Forward: to("refused")},
			{Match: path("/app"), Origin: at("http[10]"), Forward: to("c")},
			{Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: "/dots"}}, Origin: at("http[11]"), Forward: to("c"), Rewrite: &plan.Rewrite{Path: "/"}},
		},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(originHeader, "forged") }}},
		at:   map[string][]plan.Endpoint{"refused": {{Address: "127.0.0.1:1"}}, "empty": nil},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP}, {Name: "refused", Protocol: ident.HTTP},
			{Name: "empty", Protocol: ident.HTTP, Origin: ident.Origin{Kind: "DestinationRule", Namespace: "ns", Name: "dr", File: "dr.yaml", Line: 2}}},
		limits: []plan.RateLimit{hourly("none", 0, plan.ByAll)},
	}
	change(&c)
	return newRig(t, c)
}

var own = []struct {
	path   string
	status int
	flags  string
	origin string
}{
	{"/direct", 200, "-", "VirtualService/ns/vs http[0] (vs.yaml:12) direct_response"},
	{"/redirect", 301, "-", "VirtualService/ns/vs http[1] (vs.yaml:12) direct_response"},
	{"/abort", 418, "FI", "VirtualService/ns/vs http[2] (vs.yaml:12) fault_filter_abort"},
	{"/abort-grpc", 503, "FI", "VirtualService/ns/vs http[3] (vs.yaml:12) fault_filter_abort"},
	{"/limited", 429, "RL", "RateLimit/ns/none (limits.yaml:3) local_rate_limited"},
	{"/nowhere", 503, "NC", "VirtualService/ns/vs http[5] (vs.yaml:12) no_destination"},
	{"/gone", 503, "NC", "VirtualService/ns/vs http[6] (vs.yaml:12) cluster_not_found"},
	{"/invalid", 500, "NC", "VirtualService/ns/vs http[7] (vs.yaml:12) invalid_destination"},
	{"/empty", 503, "UH", "DestinationRule/ns/dr (dr.yaml:2) no_healthy_upstream"},
	{"/refused", 503, "UF", "VirtualService/ns/vs http[9] (vs.yaml:12) upstream_reset_before_response_started{connection_failure}"},
	{"/unmatched", 404, "NR", "VirtualService/ns/vs (vs.yaml:1) route_not_found"},
	{"/dots..", 400, "IH", "VirtualService/ns/vs http[11] (vs.yaml:12) rewrite_path"},
	{"/app", 200, "-", ""},
}

// Every answer of the proxy's own says who made it, to those inside: the workload's own application, and proxies that proved
// who they are. Strangers learn nothing, and nobody can make it up.
func TestOriginOfOwnAnswers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*setup)
		told   bool
	}{
		{"own application", func(*setup) {}, true},
		{"peer of the mesh", func(c *setup) { c.listener.Direction, c.peer = plan.Inbound, mesh }, true},
		{"peer without an identity", func(c *setup) { c.listener.Direction = plan.Inbound }, false},
		{"stranger at an edge", func(c *setup) { c.listener.Direction = plan.Edge }, false},
		{"stranger with a certificate at an edge", func(c *setup) { c.listener.Direction, c.peer = plan.Edge, mesh }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := every(t, tc.change)
			for _, o := range own {
				resp, body := r.do("GET", o.path, "", "host: a.example", "x-malha-explain: 1", "x-malha-origin: forged")
				if resp.StatusCode != o.status {
					t.Errorf("%s: %d %s", o.path, resp.StatusCode, body)
				}
				want := o.origin
				if !tc.told {
					want = ""
				}
				if got := resp.Header.Get(originHeader); got != want {
					t.Errorf("%s: %s is %q, want %q", o.path, originHeader, got, want)
				}
				for name, values := range resp.Header {
					if name = strings.ToLower(name); strings.HasPrefix(name, "x-malha-") && !tc.told {
						t.Errorf("%s: %s: %s", o.path, name, values)
					}
				}
			}
			resp, _ := r.do("GET", "/", "", "host: b.example")
			if got, want := resp.Header.Get(originHeader), "listener door host_not_found"; resp.StatusCode != 404 || tc.told && got != want || !tc.told && got != "" {
				t.Errorf("unknown host: %d %q", resp.StatusCode, got)
			}
			logged := r.records()
			for i, o := range own {
				l := logged[i]
				if l["response_flags"] != o.flags {
					t.Errorf("%s: flags %v, want %s", o.path, l["response_flags"], o.flags)
				}
				if o.origin != "" && (l["route_origin"] == nil || !strings.HasSuffix(o.origin, " "+l["response_code_details"].(string))) {
					t.Errorf("%s: logged %v, %v", o.path, l["route_origin"], l["response_code_details"])
				}
			}
		})
	}
}

// What the far proxy said is passed on to the workload's own application, if that proxy proved to be one.
func TestOriginOfOthers(t *testing.T) {
	known, stranger := &plan.Endpoint{Identity: mesh}, &plan.Endpoint{}
	for _, tc := range []struct {
		direction plan.Direction
		tls       bool
		endpoint  *plan.Endpoint
		want      bool
	}{
		{plan.Outbound, true, known, true},
		{plan.Outbound, false, known, false},
		{plan.Outbound, true, stranger, false},
		{plan.Edge, true, known, false},
		{plan.Inbound, true, known, false},
	} {
		x := &exchange{s: &Stack{edge: tc.direction == plan.Edge, inbound: tc.direction == plan.Inbound}, lease: &upstream.Lease{TLS: tc.tls}}
		x.rec.Endpoint = tc.endpoint
		x.resp.Fields.Add(originHeader, []byte("far"))
		x.resp.Fields.Add("x-malha-route", []byte("far"))
		x.responseHeaders()
		if _, got := x.resp.Fields.Get(originHeader); got != tc.want {
			t.Errorf("%+v: passed on: %v", tc, got)
		}
		if _, got := x.resp.Fields.Get("x-malha-route"); got {
			t.Errorf("%+v: other headers of proxies are passed on", tc)
		}
	}
}

// A proxy of the mesh is believed that its program got nothing of a request, and nobody else is: a program may have acted on it.
func TestUnsent(t *testing.T) {
	known, stranger := &plan.Endpoint{Identity: mesh}, &plan.Endpoint{}
	absent := plan.Retry{Attempts: 2, On: plan.RetryConnectFailure}
	for _, tc := range []struct {
		status   int
		tls      bool
		endpoint *plan.Endpoint
		retry    plan.Retry
		said     bool
		want     bool
	}{
		{503, true, known, absent, true, true},
		{503, true, known, absent, false, false},
		{503, false, known, absent, true, false},
		{503, true, stranger, absent, true, false},
		{500, true, known, absent, true, false},
		{503, true, known, plan.Retry{Attempts: 2, On: plan.RetryReset}, true, false},
	} {
		x := &exchange{s: &Stack{}, route: &route.Route{}, ops: &plan.HeaderOps{}, req: &message.Request{}, lease: &upstream.Lease{TLS: tc.tls}}
		x.rec.Route, x.rec.Endpoint, x.resp.Status = &plan.Route{Retry: &tc.retry}, tc.endpoint, tc.status
		if tc.said {
			x.resp.Fields.Add(unsentHeader, one)
		}
		if got := x.retriesStatus(); got != tc.want {
			t.Errorf("%+v: retried: %v", tc, got)
		}
		x.responseHeaders()
		if _, passed := x.resp.Fields.Get(unsentHeader); passed {
			t.Errorf("%+v: it is passed on", tc)
		}
	}
}

// A program that goes away while its sidecar holds connections to it got nothing of what comes next, as far as it matters: what may be
// repeated can go to another replica, and what it did not read. What it read and may not be repeated cannot.
func TestUnsentIsTold(t *testing.T) {
	for _, tc := range []struct {
		method, body string
		fresh, reads bool // it is the first of its connection; the program reads it
		want         string
	}{
		{"GET", "", false, true, "1"}, {"POST", "an order", false, true, ""},
		{"GET", "", false, false, "1"}, {"POST", "an order", false, false, "1"}, {"POST", "", false, false, "1"},
		{"GET", "", true, false, "1"}, {"POST", "an order", true, false, "1"}, {"POST", "an order", true, true, ""},
		{"POST", strings.Repeat("an order ", 1000), true, false, ""}, // it may have read the first part
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		program := make(chan struct{})
		go func() { // ends with the second request
			defer close(program)
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			in := bufio.NewReader(c)
			for i := range 2 {
				if i == 0 && tc.fresh {
					continue
				}
				if i == 1 && !tc.reads {
					if raw, err := c.(*net.TCPConn).SyscallConn(); err != nil || raw.Read(arrived) != nil {
						t.Error("the second request did not come")
					}
					break
				}
				req, err := http.ReadRequest(in)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				if i == 0 {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}
			_ = l.Close() // and then the connection, without an answer
		}()
		r := newRig(t, setup{
			listener: plan.Listener{Direction: plan.Inbound}, peer: mesh,
			routes: []plan.Route{{Forward: to("app")}}, clusters: []plan.Cluster{{Name: "app", Protocol: ident.HTTP}},
			at: map[string][]plan.Endpoint{"app": {{Address: l.Addr().String()}}},
		})
		if !tc.fresh {
			if resp, body := r.do("GET", "/", ""); resp.StatusCode != 200 {
				t.Fatalf("the program answered %d %s", resp.StatusCode, body)
			}
		}
		resp, body := r.do(tc.method, "/", tc.body)
		if got := resp.Header.Get(unsentHeader); resp.StatusCode != 503 || got != tc.want {
			t.Errorf("%+v: %d %s, %s is %q", tc, resp.StatusCode, body, unsentHeader, got)
		}
		<-program
	}
}

// A program that accepts connections and closes them all, as one does that ends, got nothing either.
func TestUnsentAgain(t *testing.T) {
	app := accepts(t, func(_ int, c net.Conn) {
		if raw, err := c.(*net.TCPConn).SyscallConn(); err != nil || raw.Read(arrived) != nil {
			t.Error("no request came")
		}
	})
	r := newRig(t, setup{
		listener: plan.Listener{Direction: plan.Inbound}, peer: mesh,
		routes: []plan.Route{{Forward: to("app")}}, clusters: []plan.Cluster{{Name: "app", Protocol: ident.HTTP}},
		at: map[string][]plan.Endpoint{"app": {{Address: app}}},
	})
	resp, body := r.do("POST", "/", "an order")
	if got := resp.Header.Get(unsentHeader); resp.StatusCode != 503 || got != "1" {
		t.Errorf("%d %s, %s is %q", resp.StatusCode, body, unsentHeader, got)
	}
}

// arrived waits, for RawConn.Read, until there is something to read, and leaves it.
func arrived(fd uintptr) bool {
	_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return err != syscall.EAGAIN
}
