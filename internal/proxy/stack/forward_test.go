package stack

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// echo answers with headers that it was sent.
func echo(names ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, n := range names {
			if n == "host" {
				_, _ = fmt.Fprintf(w, "host=%s\n", r.Host)
				continue
			}
			_, _ = fmt.Fprintf(w, "%s=%s\n", n, strings.Join(r.Header.Values(n), "|"))
		}
	}
}

func TestTrustedHops(t *testing.T) {
	for _, tc := range []struct {
		hops    uint32
		headers []string
		want    string // x-forwarded-for, x-forwarded-proto
		client  string // by whose address requests count
	}{
		{0, []string{"x-forwarded-for: 203.0.113.9", "x-forwarded-proto: https"}, "192.0.2.1 http", "192.0.2.1"},
		{1, []string{"x-forwarded-for: 203.0.113.9", "x-forwarded-proto: https"}, "203.0.113.9, 192.0.2.1 https", "203.0.113.9"},
		{1, []string{"x-forwarded-for: 1.1.1.1, 203.0.113.9", "x-forwarded-proto: gopher"}, "1.1.1.1, 203.0.113.9, 192.0.2.1 http", "203.0.113.9"},
		{2, []string{"x-forwarded-for: 1.1.1.1", "x-forwarded-for: 203.0.113.9,198.51.100.7"}, "1.1.1.1, 203.0.113.9,198.51.100.7, 192.0.2.1 http", "203.0.113.9"},
		{2, []string{"x-forwarded-for: 203.0.113.9"}, "203.0.113.9, 192.0.2.1 http", "192.0.2.1"},
		{1, []string{"x-forwarded-for: nonsense"}, "nonsense, 192.0.2.1 http", "192.0.2.1"},
		{1, nil, "192.0.2.1 http", "192.0.2.1"},
	} {
		var seen string
		r := newRig(t, setup{
			remote:   "192.0.2.1:1000",
			listener: plan.Listener{Direction: plan.Edge, TrustedHops: tc.hops, Limits: []string{"l"}},
			routes:   []plan.Route{{Forward: to("c")}},
			apps:     map[string][]http.HandlerFunc{"c": {echo("x-forwarded-for", "x-forwarded-proto")}},
			limits:   []plan.RateLimit{hourly("l", 1, plan.ByAddress)},
		})
		_, seen = r.do("GET", "/", "", tc.headers...)
		f, p, _ := strings.Cut(tc.want, " h")
		if want := "x-forwarded-for=" + f + "\nx-forwarded-proto=h" + p + "\n"; seen != want {
			t.Errorf("%d hops, %q: the program saw %q, want %q", tc.hops, tc.headers, seen, want)
		}
		// The bucket of the client's address is empty now, and no other is.
		probe := func(addr string) int {
			if addr == "192.0.2.1" {
				resp, _ := r.do("GET", "/", "")
				return resp.StatusCode
			}
			resp, _ := r.do("GET", "/", "", "x-forwarded-for: "+addr+strings.Repeat(", 9.9.9.9", int(tc.hops)-1))
			return resp.StatusCode
		}
		if got := probe(tc.client); got != 429 {
			t.Errorf("%d hops, %q: another request of %s gets %d", tc.hops, tc.headers, tc.client, got)
		}
	}
}

func TestEndpointHost(t *testing.T) {
	app := program(t, echo("host"))
	_, port, _ := net.SplitHostPort(app)
	for address, want := range map[string]string{"localhost:" + port: "host=localhost\n", app: "host=a.example:81\n"} {
		r := newRig(t, setup{
			routes:   []plan.Route{{Forward: to("c"), Rewrite: &plan.Rewrite{EndpointHost: true}}},
			at:       map[string][]plan.Endpoint{"c": {{Address: address}}},
			clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP}},
		})
		if resp, got := r.do("GET", "/", "", "host: a.example:81"); got != want {
			t.Errorf("%s: %d %q, want %q", address, resp.StatusCode, got, want)
		}
	}
}

// A retry goes elsewhere, unless the rule says that any endpoint will do.
func TestRetriesAvoidWhatFailed(t *testing.T) {
	for _, any := range []bool{false, true} {
		fails, twice := 0, 0
		bad := func(w http.ResponseWriter, r *http.Request) {
			if fails++; r.Header.Get("x-request-id") == "same" {
				twice++
			}
			w.WriteHeader(503)
		}
		r := newRig(t, setup{
			routes: []plan.Route{{Forward: to("c"), Retry: &plan.Retry{Attempts: 1, On: plan.Retry5xx, AnyHost: any, BackoffBase: 1}}},
			apps:   map[string][]http.HandlerFunc{"c": {bad, says("well")}},
		})
		failed := 0
		for range 60 {
			if resp, _ := r.do("GET", "/", ""); resp.StatusCode != 200 {
				failed++
			}
		}
		if (failed > 0) != any {
			t.Errorf("any host %v: %d of 60 failed on both tries", any, failed)
		}
	}
}

// An endpoint that is not there has given no answer, which each of the conditions about that is met by (Envoy wouldRetryFromReset).
func TestNoEndpointIsRetried(t *testing.T) {
	for on, want := range map[plan.RetryOn]bool{
		plan.RetryConnectFailure: true, plan.RetryReset: true, plan.Retry5xx: true, plan.RetryGatewayError: true,
		plan.RetryRefusedStream: false, plan.RetryRetriable4xx: false,
	} {
		r := newRig(t, setup{
			routes: []plan.Route{{Forward: to("c"), Retry: &plan.Retry{Attempts: 1, On: on, BackoffBase: 1}}},
			apps:   map[string][]http.HandlerFunc{"c": {says("well")}},
			at:     map[string][]plan.Endpoint{"c": {{Address: "127.0.0.1:1"}}},
		})
		failed := 0
		for range 30 {
			if resp, _ := r.do("POST", "/", "an order"); resp.StatusCode != 200 {
				failed++
			}
		}
		if (failed == 0) != want {
			t.Errorf("%b: %d of 30 failed", on, failed)
		}
	}
}

func TestFaults(t *testing.T) {
	code := 8
	for _, tc := range []struct {
		name   string
		fault  plan.Fault
		grpc   bool
		status int
		code   string
		flags  string
	}{
		{"delay", plan.Fault{Delay: 1, DelayPercent: 100}, false, 200, "", "DI"},
		{"delay of none", plan.Fault{Delay: plan.Duration(1 << 40), DelayPercent: 0}, false, 200, "", "-"},
		{"delay and abort", plan.Fault{Delay: 1, DelayPercent: 100, AbortStatus: 418, AbortPercent: 100}, false, 418, "", "DI,FI"},
		{"abort of none", plan.Fault{AbortStatus: 418}, false, 200, "", "-"},
		{"status to gRPC", plan.Fault{AbortStatus: 503, AbortPercent: 100}, true, 200, "14", "FI"},
		{"code to gRPC", plan.Fault{AbortGRPC: &code, AbortPercent: 100}, true, 200, "8", "FI"},
		{"code to others", plan.Fault{AbortGRPC: &code, AbortPercent: 100}, false, 429, "", "FI"},
	} {
		r := newRig(t, setup{http2: tc.grpc, routes: []plan.Route{{Forward: to("c"), Fault: &tc.fault, Timeout: 1 << 38}}, apps: map[string][]http.HandlerFunc{"c": {says("well")}}})
		headers := []string{"x: y"}
		if tc.grpc {
			headers[0] = "content-type: application/grpc"
		}
		resp, _ := r.do("POST", "/", "", headers...)
		if resp.StatusCode != tc.status || resp.Header.Get("grpc-status") != tc.code {
			t.Errorf("%s: %d %v", tc.name, resp.StatusCode, resp.Header)
		}
		if l := r.records()[0]; l["response_flags"] != tc.flags {
			t.Errorf("%s: flags %v", tc.name, l["response_flags"])
		}
	}
}
