package stack

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// catcher is what internal/proxy/server does about a panic.
type catcher struct {
	s      *Stack
	caught chan any
}

func (c catcher) Serve(d stream.Downstream, p *conn.Peer) {
	defer func() {
		if v := recover(); v != nil {
			c.caught <- v
		}
	}()
	c.s.Serve(d, p)
}

// A panic while a response is looked at ends its own exchange only: the client's other streams, the endpoint's lease and the
// counts of the cluster are as after any failed exchange.
func TestPanicEndsOneExchange(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var s *Stack
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			for _, h := range []*hostState{stateOf(s.Table.Host(nil))} {
				h.budget.slotLen = 0 // the retry that this answer asks for divides by it
			}
			w.WriteHeader(503)
			return
		}
		_, _ = io.WriteString(w, "well")
	})}
	var done sync.WaitGroup
	done.Go(func() { _ = app.Serve(l) })

	table := &plan.RouteTable{Name: "t", Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []plan.Route{
		{Name: "default", Forward: []plan.Destination{{Cluster: "c"}}, Retry: &plan.Retry{Attempts: 1, On: plan.Retry5xx}}}}}}
	rt, err := route.Build(table)
	if err != nil {
		t.Fatal(err)
	}
	cfg := conn.Defaults()
	rec := telemetry.New(telemetry.Options{})
	set := upstream.New(upstream.Options{Conn: cfg, Log: slog.New(slog.DiscardHandler)})
	update(t, set, []plan.Cluster{{Name: "c", Host: "c", Port: 80, Protocol: ident.HTTP}},
		[]plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: l.Addr().String()}}}})
	s = New(Config{Node: &plan.Node{}, Listener: &plan.Listener{Name: "l", Direction: plan.Outbound}, Table: rt, Upstreams: set, Recorder: rec, Mirrors: &Mirrors{}})

	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := catcher{s, make(chan any, 1)}
	done.Go(func() {
		nc, err := front.Accept()
		if err != nil {
			return
		}
		conn.ServeH2(nc, nil, &conn.Peer{Remote: netip.MustParseAddrPort("127.0.0.1:1")}, c, cfg, nil)
	})
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: tr, Timeout: time.Minute}
	get := func(path string) (string, error) {
		resp, err := client.Get("http://" + front.Addr().String() + path)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := get("/"); got != "well" || err != nil {
		t.Fatal(got, err)
	}
	if got, err := get("/bad"); err == nil || !strings.Contains(err.Error(), "INTERNAL_ERROR") {
		t.Errorf("the exchange that panicked answered %q, error %v", got, err)
	}
	if v := <-c.caught; !strings.Contains(v.(error).Error(), "divide") {
		t.Errorf("caught %v", v)
	}
	for _, h := range []*hostState{stateOf(s.Table.Host(nil))} {
		h.budget.init(plan.RetryBudget{})
	}
	if got, err := get("/"); got != "well" || err != nil { // the listener accepts one connection: it is the same one
		t.Errorf("after the panic on the same connection: %q %v", got, err)
	}
	underWay := func() (n int64) {
		for _, cl := range set.Snapshot().Clusters {
			n += cl.Requests
		}
		return n
	}
	for range 6000 { // a client may read the end of an answer before the exchange has let go of its endpoint
		if underWay() == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := underWay(); n != 0 {
		t.Errorf("%d requests are still counted as under way", n)
	}
	tr.CloseIdleConnections()
	_ = front.Close()
	_ = app.Close()
	done.Wait()
}

func TestGRPCTimeout(t *testing.T) {
	for in, want := range map[string]time.Duration{"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "4m": 4 * time.Millisecond,
		"5u": 5 * time.Microsecond, "99999999n": 99999999, "99999999H": 100_000 * time.Hour, "0m": 0} {
		if got, ok := grpcTimeout([]byte(in)); !ok || got != want {
			t.Errorf("%s is %v, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "S", "1", "1s", "-1S", "123456789S", "1.5S", " 1S"} {
		if got, ok := grpcTimeout([]byte(in)); ok {
			t.Errorf("%q was taken for %v", in, got)
		}
	}
}
