package stack

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

func millis(n int) plan.Duration { return plan.Duration(n) * plan.Duration(time.Millisecond) }

// waits answers nothing until its client leaves.
func waits(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // the server watches its client from then on
	<-r.Context().Done()
}

// drips sends a head and then a byte whenever a while is over, n times.
func drips(n int, every time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for range n {
			_, _ = io.WriteString(w, ".")
			w.(http.Flusher).Flush()
			select {
			case <-time.After(every):
			case <-r.Context().Done():
				return
			}
		}
	}
}

func TestTimesOfRoutes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		route  plan.Route
		app    http.HandlerFunc
		body   string
		status int
		flags  string
		whole  bool // the response arrives to its end
		tries  int
	}{
		{"head in time", plan.Route{Response: millis(2000)}, says("well"), "", 200, "-", true, 1},
		{"head late", plan.Route{Response: millis(500)}, waits, "", 504, "UT", true, 1},
		{"head late, of a request with a body", plan.Route{Response: millis(500)}, waits, "abc", 504, "UT", true, 1},
		{"a body may take longer", plan.Route{Response: millis(300)}, drips(6, 100*time.Millisecond), "", 200, "-", true, 1},
		{"no retry when the time of heads is over", plan.Route{Response: millis(500), Retry: &plan.Retry{Attempts: 3, On: plan.Retry5xx}}, waits, "", 504, "UT", true, 1},
		{"retries within the time of heads", plan.Route{Response: millis(5000), Retry: &plan.Retry{Attempts: 1, On: plan.Retry5xx, PerTry: millis(500)}}, waits, "", 504, "UT", true, 2},
		{"idle before the head", plan.Route{Idle: millis(60)}, waits, "", 504, "SI", true, 1},
		{"idle in the body", plan.Route{Idle: millis(60)}, drips(2, time.Second), "", 200, "SI", false, 1},
		{"slow and not idle", plan.Route{Idle: millis(1000)}, drips(5, 100*time.Millisecond), "", 200, "-", true, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := make(chan struct{}, 9)
				tc.route.Forward, tc.route.Origin = to("c"), at("http[0]")
				r := newRig(t, setup{pipes: new(pipes), routes: []plan.Route{tc.route}, apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, r *http.Request) {
					tries <- struct{}{}
					tc.app(w, r)
				}}}})
				req, _ := http.NewRequest("POST", r.url, strings.NewReader(tc.body))
				resp, err := r.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != tc.status || (err == nil) != tc.whole || len(tries) != tc.tries {
					t.Errorf("status %d, body ended with %v, %d tries", resp.StatusCode, err, len(tries))
				}
				l := r.records()[0]
				if f := l["response_flags"].(string); f != tc.flags && f != tc.flags+",URX" && f != "URX,"+tc.flags || tc.flags == "SI" && l["response_code_details"] != "stream_idle_timeout" {
					t.Errorf("logged: %v", l)
				}
			})
		})
	}
}

// An application may ask its own proxy for another time than the rule's, shorter, longer or none (x-envoy-upstream-rq-timeout-ms);
// strangers at an edge may not, and a destination's proxy leaves it to the caller's.
func TestTimeThatTheApplicationAsksFor(t *testing.T) {
	edge := plan.Listener{Direction: plan.Edge}
	for _, tc := range []struct {
		name     string
		listener plan.Listener
		rule     int // ms
		header   string
		status   int
	}{
		{"shorter than the rule's", plan.Listener{}, 3000, "100", 504},
		{"without a rule's", plan.Listener{}, 0, "100", 504},
		{"longer than the rule's", plan.Listener{}, 100, "3000", 200},
		{"none", plan.Listener{}, 100, "0", 200},
		{"no number", plan.Listener{}, 100, "1s", 504},
		{"too long a number", plan.Listener{}, 100, "1000000000", 504},
		{"at an edge", edge, 100, "3000", 504},
		{"at the destination", plan.Listener{Direction: plan.Inbound}, 100, "3000", 504},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const name = "x-envoy-upstream-rq-timeout-ms"
				r := newRig(t, setup{
					pipes: new(pipes), listener: tc.listener,
					routes: []plan.Route{{Timeout: millis(tc.rule), Forward: to("c")}},
					apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, r *http.Request) {
						if r.Header.Get(name) != "" && tc.listener.Direction != plan.Inbound {
							t.Error("the header went on")
						}
						select {
						case <-time.After(time.Second):
						case <-r.Context().Done():
						}
					}}},
				})
				req, _ := http.NewRequest("GET", r.url, http.NoBody)
				req.Header.Set(name, tc.header)
				resp, err := r.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != tc.status {
					t.Errorf("status %d, want %d", resp.StatusCode, tc.status)
				}
			})
		})
	}
}

// A client that stops in the middle of its body is told so (408), and one that goes on slowly is not disturbed.
func TestIdleRequestBody(t *testing.T) { synctest.Test(t, testIdleRequestBody) }

func testIdleRequestBody(t *testing.T) {
	r := newRig(t, setup{
		pipes:  new(pipes),
		routes: []plan.Route{{Forward: to("c"), Idle: millis(150)}},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprint(w, len(b))
		}}},
	})
	send := func(n int, pause time.Duration) *http.Response {
		nc, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\n")
		for range n {
			time.Sleep(pause)
			_, _ = io.WriteString(nc, "x")
		}
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if resp := send(3, 0); resp.StatusCode != 408 {
		t.Errorf("a body that stops: %d", resp.StatusCode)
	}
	if resp := send(6, 50*time.Millisecond); resp.StatusCode != 200 {
		t.Errorf("a slow body: %d", resp.StatusCode)
	}
}

// Nor does a small body that comes slowly.
func TestSlowBodyIsNotTheDestinations(t *testing.T) {
	synctest.Test(t, testSlowBodyIsNotTheDestinations)
}

func testSlowBodyIsNotTheDestinations(t *testing.T) {
	for _, route := range []plan.Route{
		{Timeout: millis(400), Response: millis(400)},
		{Retry: &plan.Retry{Attempts: 1, On: plan.RetryReset, PerTry: millis(400)}},
		{},
	} {
		slowBody(t, route)
	}
}

func slowBody(t *testing.T, route plan.Route) {
	route.Forward = to("c")
	r := newRig(t, setup{
		pipes:  new(pipes),
		routes: []plan.Route{route},
		apps:   map[string][]http.HandlerFunc{"c": {says("well")}},
	})
	nc, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\n")
	for range 6 {
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(nc, "x")
	}
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		t.Fatal(err)
	}
	if took := resp.Header.Get("x-envoy-upstream-service-time"); resp.StatusCode != 200 || took != "0" {
		t.Errorf("a slow body: %d, and the destination is said to have taken %s ms", resp.StatusCode, took)
	}
	if n := r.records()[0]["attempts"]; n != 1.0 {
		t.Errorf("a slow body took %v attempts", n)
	}
}

// The route's times are about the destination: an injected delay does not use them up.
func TestDelayIsNotTheDestinations(t *testing.T) { synctest.Test(t, testDelayIsNotTheDestinations) }

func testDelayIsNotTheDestinations(t *testing.T) {
	r := newRig(t, setup{
		pipes:  new(pipes),
		routes: []plan.Route{{Forward: to("c"), Timeout: millis(150), Response: millis(150), Idle: millis(150), Fault: &plan.Fault{Delay: millis(200), DelayPercent: 100}}},
		apps:   map[string][]http.HandlerFunc{"c": {says("well")}},
	})
	if resp, body := r.do("GET", "/", ""); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// Peak-EWMA is about how soon an endpoint answers, and not about how long its answers are.
func TestLatencyEndsWithTheHead(t *testing.T) { synctest.Test(t, testLatencyEndsWithTheHead) }

func testLatencyEndsWithTheHead(t *testing.T) {
	headed, goOn := make(chan struct{}), make(chan struct{})
	r := newRig(t, setup{
		pipes:  new(pipes),
		routes: []plan.Route{{Forward: to("c")}},
		apps: map[string][]http.HandlerFunc{"c": {func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Second)
			_ = http.NewResponseController(w).Flush()
			close(headed)
			<-goOn
		}}},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP, Balancer: plan.PeakEWMA}},
	})
	go func() {
		<-headed
		time.Sleep(2 * time.Second)
		close(goOn)
	}()
	time.Sleep(time.Millisecond) // what is as old as the clusters themselves is not timed
	if resp, _ := r.do("GET", "/", ""); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	r.clusterRequests("c") // waits until the exchange is over
	for _, c := range r.stack.Upstreams.Snapshot().Clusters {
		got := time.Duration(c.Endpoints[0].Latency * float64(time.Second)).Round(time.Millisecond)
		if got != time.Second {
			t.Errorf("the endpoint counts as taking %v, want the second that its head took", got)
		}
	}
}
