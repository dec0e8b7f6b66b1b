package stack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// http2Program is a program that speaks HTTP/2 without TLS.
func http2Program(t testing.TB, h http.HandlerFunc) plan.Endpoint {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return plan.Endpoint{Address: strings.TrimPrefix(s.URL, "http://")}
}

// raw is a program that answers every connection with these bytes, and closes it.
func raw(t testing.TB, answer string) plan.Endpoint {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, answer)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-over })
	return plan.Endpoint{Address: ln.Addr().String()}
}

// Each response flag comes about as docs/proxy.md says, with a detail and the rule, and is counted under the service.
func TestFlags(t *testing.T) {
	hold := make(chan struct{})
	asked := make(chan struct{}, 10)
	slow := func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-hold
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := plan.Endpoint{Address: free.Addr().String()}
	_ = free.Close()

	prefix := func(p string) plan.Match { return plan.Match{Path: &match.String{Kind: match.Prefix, Value: p}} }
	retry := &plan.Retry{Attempts: 1, On: plan.Retry5xx}
	rule := func(name, cluster string, change func(*plan.Route)) plan.Route {
		r := plan.Route{Name: name, Match: prefix("/" + name), Origin: at(name), Forward: to(cluster)}
		if change != nil {
			change(&r)
		}
		return r
	}
	r := newRig(t, setup{
		service: plan.ServiceLabels{Host: "s.ns.svc.cluster.local", Name: "s", Namespace: "ns"},
		domains: []string{"known"},
		routes: []plan.Route{
			rule("well", "well", nil),
			rule("uh", "empty", nil),
			rule("uf", "closed", nil),
			rule("urx-uf", "closed", func(r *plan.Route) { r.Retry = retry }),
			rule("urx", "bad", func(r *plan.Route) { r.Retry = retry }),
			rule("no-urx", "bad", nil),
			rule("uc", "aborts", nil),
			rule("mid-uc", "cuts", nil),
			rule("ur", "resets", nil),
			rule("mid-ur", "resets", nil),
			rule("ut", "slow", func(r *plan.Route) { r.Timeout = plan.Duration(20 * time.Millisecond) }),
			rule("si", "slow", func(r *plan.Route) { r.Idle = plan.Duration(20 * time.Millisecond) }),
			rule("upe", "garbage", nil),
			rule("nc", "missing", nil),
			rule("fi", "well", func(r *plan.Route) { r.Fault = &plan.Fault{AbortStatus: 503, AbortPercent: 100} }),
			rule("di", "well", func(r *plan.Route) {
				r.Fault = &plan.Fault{Delay: plan.Duration(time.Millisecond), DelayPercent: 100}
			}),
			rule("ih", "well", func(r *plan.Route) { r.Rewrite = &plan.Rewrite{Path: "/"} }),
			rule("rl", "well", func(r *plan.Route) { r.Limits = []string{"none"} }),
			rule("own", "well", func(r *plan.Route) { r.Forward, r.Direct = nil, &plan.DirectResponse{Status: 503} }),
		},
		limits: []plan.RateLimit{hourly("none", 1, plan.ByAll)},
		policies: []plan.Policy{{Name: "ns/p", Action: plan.Deny, Rules: []plan.PolicyRule{{
			To: []plan.Operation{{Paths: []match.String{{Kind: match.Suffix, Value: "/denied"}}}}, Origin: ident.Origin{Kind: "AuthorizationPolicy", Namespace: "ns", Name: "p", Rule: "rules[0]"},
		}}}},
		apps: map[string][]http.HandlerFunc{
			"well": {says("well")}, "slow": {slow},
			"bad":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
			"aborts": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		},
		at: map[string][]plan.Endpoint{
			"empty": {}, "closed": {closed}, "garbage": {raw(t, "garbage\r\n\r\n")}, "cuts": {raw(t, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")},
			"resets": {http2Program(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/mid-ur" {
					_, _ = io.WriteString(w, "hello")
					_ = http.NewResponseController(w).Flush()
				}
				panic(http.ErrAbortHandler)
			})},
		},
		clusters: func() (cs []plan.Cluster) {
			for _, name := range []string{"well", "empty", "closed", "bad", "aborts", "garbage", "cuts", "resets", "slow"} {
				c := plan.Cluster{Name: name, Protocol: ident.HTTP, Service: plan.ServiceLabels{Host: name + ".host", Name: name, Namespace: "ns"}}
				if name == "resets" {
					c.Protocol = ident.HTTP2
				}
				cs = append(cs, c)
			}
			return cs
		}(),
	})
	type want struct {
		path            string
		status          float64
		flags, detail   string
		cluster, origin string
	}
	wants := []want{
		{"/well", 200, "-", "via_upstream", "well", "well"},
		{"/uh", 503, "UH", "no_healthy_upstream", "empty", "uh"},
		{"/uf", 503, "UF", "upstream_reset_before_response_started{connection_failure}", "closed", "uf"},
		{"/urx-uf", 503, "UF,URX", "upstream_reset_before_response_started{connection_failure}", "closed", "urx-uf"},
		{"/urx", 503, "URX", "via_upstream", "bad", "urx"},
		{"/no-urx", 503, "-", "via_upstream", "bad", "no-urx"},
		{"/uc", 503, "UC", "upstream_reset_before_response_started{connection_termination}", "aborts", "uc"},
		{"/mid-uc", 200, "UC", "upstream_reset_after_response_started", "cuts", "mid-uc"},
		{"/ur", 503, "UR", "upstream_reset_before_response_started{remote_reset}", "resets", "ur"},
		{"/mid-ur", 200, "UR", "upstream_reset_after_response_started", "resets", "mid-ur"},
		{"/ut", 504, "UT", "upstream_response_timeout", "slow", "ut"},
		{"/si", 504, "SI", "stream_idle_timeout", "slow", "si"},
		{"/upe", 502, "UPE", "upstream_reset_before_response_started{protocol_error}", "garbage", "upe"},
		{"/nc", 503, "NC", "cluster_not_found", "", "nc"},
		{"/fi", 503, "FI", "fault_filter_abort", "well", "fi"},
		{"/ih..", 400, "IH", "rewrite_path", "well", "ih"},
		{"/di", 200, "DI", "via_upstream", "well", "di"},
		{"/rl", 200, "-", "via_upstream", "well", "rl"},
		{"/rl", 429, "RL", "local_rate_limited", "well", "RateLimit/ns/none (limits.yaml:3)"},
		{"/own", 503, "-", "direct_response", "", "own"},
		{"/well/denied", 403, "UAEX", "rbac_access_denied_matched_policy[ns[ns]-policy[p]-rule[0]]", "well", "AuthorizationPolicy/ns/p rules[0]"},
		{"/nothing", 404, "NR", "route_not_found", "", ""},
	}
	for _, w := range wants {
		req, err := http.NewRequest("GET", r.url+w.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "known"
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(w.path, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); (err != nil) != strings.HasPrefix(w.path, "/mid") {
			t.Errorf("%s: the body: %v", w.path, err)
		}
		_ = resp.Body.Close()
	}
	for range 2 { // the attempts of ut and si
		<-asked
	}
	if resp, _ := r.do("GET", "/well", "", "host: stranger"); resp.StatusCode != 404 {
		t.Errorf("a host that nobody knows: %d", resp.StatusCode)
	}
	wants = append(wants, want{"/well", 404, "NR", "host_not_found", "", "listener door"})
	c, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nno header\r\n\r\n")
	_, _ = io.ReadAll(c)
	_ = c.Close()
	wants = append(wants, want{"", 400, "DPE", "", "", "listener door"})
	close(hold)

	got := r.records()
	if len(got) != len(wants) {
		t.Fatalf("%d lines, want %d", len(got), len(wants))
	}
	for _, w := range wants {
		// A line is written when its response is out, and may be later than that of the next request over another connection.
		i := slices.IndexFunc(got, func(l map[string]any) bool {
			path, _ := l["path"].(string)
			return path == w.path && l["response_code"] == w.status
		})
		if i < 0 {
			t.Errorf("%s: no line with %v", w.path, w.status)
			continue
		}
		l := got[i]
		got = slices.Delete(got, i, i+1)
		origin := w.origin
		if origin != "" && !strings.ContainsAny(origin, "/ ") {
			origin = "VirtualService/ns/vs " + origin + " (dir/vs.yaml:12)"
		} else if origin == "" {
			origin = "VirtualService/ns/vs (dir/vs.yaml:1)"
		}
		cluster, _ := l["upstream_cluster"].(string)
		if l["response_code"] != w.status || l["response_flags"] != w.flags || w.detail != "" && l["response_code_details"] != w.detail || cluster != w.cluster || l["route_origin"] != origin {
			t.Errorf("%s: %v %v %v cluster %v, %v;\nwant %v", w.path, l["response_code"], l["response_flags"], l["response_code_details"], l["upstream_cluster"], l["route_origin"], w)
		}
		if reached := w.detail == "via_upstream"; (l["upstream_local_address"] != nil) != (reached || l["upstream_host"] != nil && !strings.Contains(w.flags, "UF")) {
			t.Errorf("%s: from %v to %v", w.path, l["upstream_local_address"], l["upstream_host"])
		}
	}
	var page bytes.Buffer
	if _, err := r.rec.WriteTo(&page); err != nil {
		t.Fatal(err)
	}
	for _, w := range wants {
		if w.cluster == "" {
			continue
		}
		service, code := `destination_service_name="`+w.cluster+`"`, `response_code="`+strconv.Itoa(int(w.status))+`"`
		found := false
		for l := range strings.Lines(page.String()) {
			found = found || strings.HasPrefix(l, "istio_requests_total{") && strings.Contains(l, service) && strings.Contains(l, code) && strings.Contains(l, `response_flags="`+w.flags+`"`)
		}
		if !found {
			t.Errorf("%s is not counted at service %s with %v %s", w.path, w.cluster, w.status, w.flags)
		}
	}
}

// A client that leaves before the answer is DC with status 0; one whose body stops coming is DT.
func TestFlagsOfClients(t *testing.T) {
	asked, left := make(chan struct{}), make(chan struct{})
	r := newRig(t, setup{
		bodyIdle: 30 * time.Millisecond,
		routes:   []plan.Route{{Name: "r", Origin: at("r"), Forward: to("c")}},
		apps: map[string][]http.HandlerFunc{"c": {func(_ http.ResponseWriter, r *http.Request) {
			close(asked)
			<-r.Context().Done()
			close(left)
		}}},
	})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", r.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-asked
		cancel()
	}()
	if resp, err := r.client.Do(req); !errors.Is(err, context.Canceled) {
		_ = resp.Body.Close()
		t.Fatal(err)
	}
	<-left
	c, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
	_, _ = io.ReadAll(c)
	_ = c.Close()
	for i, want := range []struct {
		status float64
		flags  string
		in     float64
	}{{0, "DC", 0}, {408, "DT", 4}} {
		if l := r.records()[i]; l["response_code"] != want.status || l["response_flags"] != want.flags || l["bytes_received"] != want.in {
			t.Errorf("%v, want %v", l, want)
		}
	}
}

// Sizes are those of what went over the client's connection: the head as it was sent, and the body.
func TestSizes(t *testing.T) {
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("c")}},
		apps:   map[string][]http.HandlerFunc{"c": {says("well")}},
	})
	c, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	const request = "POST /a HTTP/1.1\r\nHost:   a\r\nContent-Length: 3\r\nX-Any: thing\r\n\r\nabc"
	answered := 0
	in := bufio.NewReader(c)
	for range 2 {
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		for line := ""; line != "\r\n"; answered += len(line) {
			if line, err = in.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadFull(in, make([]byte, len("well"))); err != nil {
			t.Fatal(err)
		}
		answered += len("well")
	}
	_ = c.Close()
	r.stop()
	r.wantSum("istio_request_bytes_sum", 2*len(request))
	r.wantSum("istio_response_bytes_sum", answered)
}

// wantSum wants the samples of a name to add up.
func (r *rig) wantSum(name string, want int) {
	r.t.Helper()
	var page bytes.Buffer
	if _, err := r.rec.WriteTo(&page); err != nil {
		r.t.Fatal(err)
	}
	got := 0
	for l := range strings.Lines(page.String()) {
		if strings.HasPrefix(l, name+"{") {
			n, err := strconv.Atoi(strings.TrimSpace(l[strings.LastIndexByte(l, ' '):]))
			if err != nil {
				r.t.Fatal(err)
			}
			got += n
		}
	}
	if got != want {
		r.t.Errorf("%s is %d, want %d", name, got, want)
	}
}

// gRPC messages are counted whole, however they are cut, in both directions.
func TestMessagesOfGRPC(t *testing.T) {
	frame := func(n int) []byte {
		return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, bytes.Repeat([]byte{7}, n)...)
	}
	r := newRig(t, setup{
		http2:    true,
		routes:   []plan.Route{{Forward: to("c")}},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.GRPC}},
		at: map[string][]plan.Endpoint{"c": {http2Program(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("content-type", "application/grpc")
			for _, p := range [][]byte{frame(3), frame(0), frame(70_000), frame(5)[:7]} { // the last one is cut off
				_, _ = w.Write(p)
				_ = http.NewResponseController(w).Flush()
			}
			w.Header().Set(http.TrailerPrefix+"grpc-status", "0")
		})}},
	})
	send := func(body io.Reader) {
		req, err := http.NewRequest("POST", r.url+"/s/m", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("content-type", "application/grpc")
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	send(bytes.NewReader(append(frame(1), frame(0)...))) // of known length
	pr, pw := io.Pipe()
	go func() {
		b := append(frame(100_000), frame(2)...)
		for len(b) > 0 {
			n := min(len(b), 3333)
			_, _ = pw.Write(b[:n])
			b = b[n:]
		}
		_ = pw.Close()
	}()
	send(pr)
	r.stop()
	r.wantSum("istio_request_messages_total", 4)
	r.wantSum("istio_response_messages_total", 6)
}

// A stream of messages is the same however it is cut.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var whole, cut messages
		whole.pass(b)
		n := int(step)%7 + 1
		for rest := b; len(rest) > 0; {
			k := min(n, len(rest))
			cut.pass(rest[:k])
			rest = rest[k:]
		}
		if whole.done != cut.done {
			t.Errorf("%d messages in one piece, %d in pieces of %d", whole.done, cut.done, n)
		}
	})
}
