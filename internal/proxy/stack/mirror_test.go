package stack

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// copies is a program that remembers what it was sent.
type copies struct {
	mu   sync.Mutex
	seen []string
}

func (c *copies) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	c.seen = append(c.seen, fmt.Sprintf("%s %s%s %s %q", r.Method, r.Host, r.URL.Path, r.Header.Get("x-set"), b))
	c.mu.Unlock()
	w.WriteHeader(500)
}

func TestMirror(t *testing.T) {
	c := &copies{}
	r := newRig(t, setup{
		routes: []plan.Route{{
			Forward: to("c"), Rewrite: &plan.Rewrite{Path: "/new/"}, Headers: plan.HeaderOps{Request: plan.FieldOps{Set: []plan.Field{{Name: "x-set", Value: "1"}}}},
			Mirrors: []plan.Mirror{{Cluster: "m", Percent: 100}, {Cluster: "m", Percent: 0}, {Cluster: "gone", Percent: 100}},
		}},
		apps: map[string][]http.HandlerFunc{"c": {says("well")}, "m": {c.ServeHTTP}},
	})
	for _, body := range []string{"", "small"} {
		if resp, got := r.do("POST", "/old", body, "host: a.example:81"); resp.StatusCode != 200 || got != "well" {
			t.Errorf("%d %s", resp.StatusCode, got)
		}
	}
	chunked := func(n int) {
		req, _ := http.NewRequest("POST", r.url+"/old", io.MultiReader(strings.NewReader(strings.Repeat("x", n)))) // of unknown length
		req.Host = "a.example"
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	chunked(5)
	chunked(keepLimit + 1) // is not kept, and so not copied
	r.stop()
	want := map[string]int{`POST a.example-shadow:81/new/old 1 ""`: 1, `POST a.example-shadow:81/new/old 1 "small"`: 1, `POST a.example-shadow/new/old 1 "xxxxx"`: 1}
	for _, s := range c.seen {
		want[s]--
	}
	for s, n := range want {
		if n != 0 {
			t.Errorf("%s: %d too few", s, n)
		}
	}
}

// What goes to a mirror has a host that the next hop takes.
func TestShadowOfAHost(t *testing.T) {
	long := strings.Repeat("a", 57)
	for authority, want := range map[string]string{
		"a":                       "a-shadow",
		"a.example:81":            "a.example-shadow:81",
		"10.0.0.1":                "10.0.0.1-shadow",
		"[::1]":                   "[::1]",
		"[fe80::1]:81":            "[fe80::1]:81",
		long[1:] + ":81":          long[1:] + "-shadow:81", // 63 bytes
		long + ":81":              long + ":81",
		"x." + long:               "x." + long,
		strings.Repeat("a.", 124): strings.Repeat("a.", 123) + "a",
	} {
		r := &message.Request{}
		var err error
		if r.Authority, r.Host, r.Port, err = message.ParseAuthority([]byte(authority)); err != nil {
			t.Fatal(err)
		}
		c := shadow(r)
		_, host, port, err := message.ParseAuthority(bytes.Clone(c.Authority))
		if err != nil || string(c.Authority) != want || !bytes.Equal(host, c.Host) || port != r.Port {
			t.Errorf("%s becomes %s, of host %s and port %d: %v", authority, c.Authority, c.Host, port, err)
		}
	}
}

// A destination's own mirrors get copies of its requests only, besides those of the route.
func TestMirrorOfADestination(t *testing.T) {
	rule, own := &copies{}, &copies{}
	forward := []plan.Destination{{Cluster: "c", Weight: 1}, {Cluster: "d", Weight: 1, Mirrors: []plan.Mirror{{Cluster: "own", Percent: 100}}}}
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: forward, Mirrors: []plan.Mirror{{Cluster: "rule", Percent: 100}}}},
		apps: map[string][]http.HandlerFunc{
			"c": {says("c")}, "d": {says("d")}, "rule": {rule.ServeHTTP}, "own": {own.ServeHTTP},
		},
	})
	const n = 20
	of := map[string]int{}
	for range n {
		_, got := r.do("GET", "/", "")
		of[got]++
	}
	r.stop()
	if of["c"] == 0 || of["d"] == 0 || of["c"]+of["d"] != n {
		t.Fatalf("answered: %v", of)
	}
	if dropped := int(r.rec.Proxy.MirrorsDropped.Value()); dropped != 0 || len(rule.seen) != n || len(own.seen) != of["d"] {
		t.Errorf("%d copies by the rule and %d by the destination, want %d and %d; %d dropped", len(rule.seen), len(own.seen), n, of["d"], dropped)
	}
}

func TestMirrorPercent(t *testing.T) {
	c := &copies{}
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("c"), Mirrors: []plan.Mirror{{Cluster: "m", Percent: 30}}}},
		apps:   map[string][]http.HandlerFunc{"c": {says("well")}, "m": {c.ServeHTTP}},
	})
	const n = 1000
	for range n {
		r.do("GET", "/", "")
	}
	r.stop()
	// Five standard deviations; copies that were dropped because too many were under way count as drawn.
	if got := len(c.seen) + int(r.rec.Proxy.MirrorsDropped.Value()); got < 230 || got > 370 {
		t.Errorf("%d of %d were copied", got, n)
	}
}

// Whatever a mirror does, the original has its answer at once: a mirror that answers nothing, that reads nothing, that is not
// there, that answers without end. What it holds is bounded, and another mirror still has room.
func TestMirrorNeverHurts(t *testing.T) {
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held sync.WaitGroup
	release := make(chan struct{})
	held.Go(func() {
		for {
			nc, err := deaf.Accept()
			if err != nil {
				return
			}
			held.Go(func() {
				<-release
				_ = nc.Close()
			})
		}
	})
	defer held.Wait()
	defer func() { _ = deaf.Close() }()
	var other atomic.Int64
	endless := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	}
	route := plan.Route{Forward: to("c")}
	for _, m := range []string{"deaf", "dead", "endless", "none", "well"} {
		route.Mirrors = append(route.Mirrors, plan.Mirror{Cluster: m, Percent: 100})
	}
	r := newRig(t, setup{
		routes: []plan.Route{route},
		apps:   map[string][]http.HandlerFunc{"c": {says("well")}, "endless": {endless}, "well": {func(http.ResponseWriter, *http.Request) { other.Add(1) }}},
		at:     map[string][]plan.Endpoint{"deaf": {{Address: deaf.Addr().String()}}, "dead": {{Address: "127.0.0.1:1"}}, "none": nil},
		clusters: []plan.Cluster{{Name: "c", Protocol: ident.HTTP}, {Name: "deaf", Protocol: ident.HTTP}, {Name: "dead", Protocol: ident.HTTP},
			{Name: "endless", Protocol: ident.HTTP}, {Name: "none", Protocol: ident.HTTP}, {Name: "well", Protocol: ident.HTTP}},
	})
	body := strings.Repeat("x", keepLimit)
	running, deafOnes := 0, 0 // at most: on a slow machine the first copies end before the last original is answered
	for range 200 {
		if resp, got := r.do("POST", "/", body); resp.StatusCode != 200 || got != "well" {
			t.Fatalf("%d %s", resp.StatusCode, got)
		}
		r.mirrors.mu.Lock()
		running, deafOnes = max(running, r.mirrors.running), max(deafOnes, r.mirrors.of[r.stack.clusters.Cluster("deaf")])
		r.mirrors.mu.Unlock()
	}
	if deafOnes != maxOfCluster || running > maxMirrors {
		t.Errorf("%d copies under way, %d to the one that never answers", running, deafOnes)
	}
	if r.rec.Proxy.MirrorsDropped.Value() == 0 {
		t.Error("copies that were not sent are not counted")
	}
	if other.Load() < 100 {
		t.Errorf("another mirror got %d of 200", other.Load())
	}
	for _, l := range r.clusterRequests("c") {
		if l != 0 {
			t.Errorf("%d originals are still under way", l)
		}
	}
	close(release)
}

func (r *rig) clusterRequests(name string) []int64 {
	var out []int64
	for range 12_000 { // the client reads the end of an answer a moment before the exchange lets go
		out = out[:0]
		for _, c := range r.stack.Upstreams.Snapshot().Clusters {
			if c.Name == name {
				out = append(out, c.Requests)
			}
		}
		if len(out) == 1 && out[0] == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return out
}

// A panic while a copy is sent ends the copy alone.
func TestMirrorPanics(t *testing.T) {
	r := newRig(t, setup{routes: []plan.Route{{Forward: to("c")}}, apps: map[string][]http.HandlerFunc{"c": {says("well")}}})
	if !r.mirrors.start(nil, r.rec, func() { panic("bug") }) {
		t.Fatal("not started")
	}
	r.mirrors.Close()
	if r.rec.Proxy.Panics.Value() != 1 || r.mirrors.running != 0 || r.mirrors.start(nil, r.rec, func() {}) {
		t.Errorf("%d panics, %d running", r.rec.Proxy.Panics.Value(), r.mirrors.running)
	}
}

// A copy is of the request and not of what one endpoint was sent, also when it is made after that.
func TestMirrorOfANamedEndpoint(t *testing.T) {
	c := &copies{}
	_, port, err := net.SplitHostPort(program(t, says("well")))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, setup{
		routes: []plan.Route{{Forward: to("c"), Rewrite: &plan.Rewrite{EndpointHost: true}, Mirrors: []plan.Mirror{{Cluster: "m", Percent: 100}}}},
		apps:   map[string][]http.HandlerFunc{"m": {c.ServeHTTP}},
		at:     map[string][]plan.Endpoint{"c": {{Address: "localhost:" + port}}},
	})
	req, _ := http.NewRequest("POST", r.url+"/", io.MultiReader(strings.NewReader("x"))) // of unknown length
	req.Host = "a.example"
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	r.stop()
	if len(c.seen) != 1 || c.seen[0] != `POST a.example-shadow/  "x"` {
		t.Errorf("the mirror saw %q", c.seen)
	}
}
