package wire_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
	"github.com/malha-mesh/malha/internal/wire/codec"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

func sample() *plan.Plan {
	return &plan.Plan{
		Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "a"}, Role: plan.Sidecar},
		Listeners: []plan.Listener{{
			Name: "in", Routes: "r", Policies: []string{"default/p"}, Limits: []string{"RateLimit/default/l"},
			ServerNames: []plan.ServerName{{
				Names: []string{"*"}, TLS: &plan.ServerTLS{Mode: plan.ServeSimple, Secrets: []string{"default/s", "default/missing"}},
				TCPRoutes: []plan.TCPRoute{{Forward: []plan.Destination{{Cluster: "c5"}}}},
			}},
		}},
		Routes:    []plan.RouteTable{{Name: "r", Hosts: []plan.VirtualHost{{Name: "h", Routes: []plan.Route{{Forward: []plan.Destination{{Cluster: "c1"}}}}}}}},
		Clusters:  []plan.Cluster{{Name: "c1"}, {Name: "c2"}, {Name: "c4"}, {Name: "c5"}},
		Endpoints: []plan.Endpoints{{Cluster: "c1", Endpoints: []plan.Endpoint{{Address: "10.0.0.1:80"}}}},
		Policies:  []plan.Policy{{Name: "default/p", Action: plan.Allow}},
		Secrets:   []plan.Secret{{Name: "default/s", Certificate: []byte("certificate"), Key: []byte("key")}},
		Limits:    []plan.RateLimit{{Name: "RateLimit/default/l", Rules: []plan.RateLimitRule{{Requests: 1}}}},
		Capture:   &plan.Capture{Inbound: "0.0.0.0:15006", Names: []plan.NameRecord{{Name: "a.example", Addresses: []string{"240.0.0.1"}}}},
	}
}

func TestCaptureComesAndGoes(t *testing.T) {
	before := state(t, sample())
	ref := wire.Ref{Kind: wire.KindCapture}
	other := plan.Capture{Outbound: "127.0.0.1:15001"}
	for what, c := range map[string]struct {
		set     []wire.Piece
		removed []wire.Ref
		want    *plan.Capture
	}{
		"stays":   {nil, nil, sample().Capture},
		"changes": {[]wire.Piece{encode(t, ref, &other)}, nil, &other},
		"goes":    {nil, []wire.Ref{ref}, nil},
	} {
		after, bad := before.With(c.set, c.removed)
		if len(bad) > 0 {
			t.Fatal(what, wire.Summary(bad))
		}
		if diff := cmp.Diff(c.want, after.Plan.Capture); diff != "" {
			t.Errorf("%s: -want +got:\n%s", what, diff)
		}
	}
	if _, bad := before.With([]wire.Piece{encode(t, ref, &other), encode(t, ref, &other)}, nil); len(bad) == 0 {
		t.Error("two captures were taken")
	}
}

func pieces(t *testing.T, p *plan.Plan) []wire.Piece {
	t.Helper()
	var out []wire.Piece
	wire.Walk(p, func(ref wire.Ref, piece any) { out = append(out, encode(t, ref, piece)) })
	return out
}

func encode(t *testing.T, ref wire.Ref, piece any) wire.Piece {
	t.Helper()
	e, err := wire.Encode(ref, piece)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func state(t *testing.T, p *plan.Plan) *wire.State {
	t.Helper()
	pack, err := packed.Of(p)
	if err != nil {
		t.Fatal(err)
	}
	return wire.NewState(pack)
}

func TestPiecesMakeThePlanAgain(t *testing.T) {
	all := pieces(t, sample())
	for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 { // the order of arrival does not count
		all[i], all[j] = all[j], all[i]
	}
	s, bad := wire.NewState(nil).With(all, nil)
	if len(bad) > 0 {
		t.Fatal(wire.Summary(bad))
	}
	if diff := cmp.Diff(sample(), s.Plan.Open()); diff != "" {
		t.Errorf("-sent +assembled:\n%s", diff)
	}
	fresh := state(t, sample())
	if diff := cmp.Diff(fresh.Have(), s.Have()); diff != "" {
		t.Errorf("hashes (-of the plan +of the pieces):\n%s", diff)
	}
}

func TestChangeSharesWhatStays(t *testing.T) {
	before := state(t, sample())
	c3 := wire.Ref{Kind: wire.KindCluster, Name: "c3"}
	after, bad := before.With(
		[]wire.Piece{
			encode(t, c3, &plan.Cluster{Name: "c3"}),
			encode(t, wire.Ref{Kind: wire.KindCluster, Name: "c4"}, &plan.Cluster{Name: "c4", Port: 4}),
			encode(t, wire.Ref{Kind: wire.KindCluster, Name: "c0"}, &plan.Cluster{Name: "c0"}),
		},
		[]wire.Ref{{Kind: wire.KindCluster, Name: "c2"}, {Kind: wire.KindCluster, Name: "never was"}})
	if len(bad) > 0 {
		t.Fatal(wire.Summary(bad))
	}
	want := sample()
	want.Clusters = []plan.Cluster{{Name: "c0"}, {Name: "c1"}, {Name: "c3"}, {Name: "c4", Port: 4}, {Name: "c5"}}
	if diff := cmp.Diff(want, after.Plan.Open()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(sample(), before.Plan.Open()); diff != "" {
		t.Errorf("the state before changed:\n%s", diff)
	}
	if &before.Plan.Endpoints[0] != &after.Plan.Endpoints[0] || &before.Plan.Routes[0] != &after.Plan.Routes[0] {
		t.Error("kinds that did not change were copied")
	}
}

func TestChangesThatAreRefused(t *testing.T) {
	cluster := func(name string) wire.Piece {
		return encode(t, wire.Ref{Kind: wire.KindCluster, Name: name}, &plan.Cluster{Name: name})
	}
	forged := cluster("c9")
	forged.Bytes = append(bytes.Clone(forged.Bytes), 0)
	misnamed := cluster("c9")
	misnamed.Ref.Name = "c8"
	node := encode(t, wire.Ref{Kind: wire.KindNode}, &sample().Node)
	unknown := wire.Piece{Ref: wire.Ref{Kind: 99, Name: "x"}, Hash: wire.HashOf(99, nil)}
	newer := wire.Piece{Ref: wire.Ref{Kind: wire.KindPolicy, Name: "n"}, Bytes: []byte{0xf8, 0x3f, 1}}
	newer.Hash = wire.HashOf(wire.KindPolicy, newer.Bytes)
	for what, tc := range map[string]struct {
		set     []wire.Piece
		removed []wire.Ref
		blames  wire.Ref
		reason  string
	}{
		"bytes of another hash": {[]wire.Piece{forged}, nil, forged.Ref, "hash"},
		"another name":          {[]wire.Piece{misnamed}, nil, misnamed.Ref, `calls itself "c9"`},
		"unknown kind":          {[]wire.Piece{unknown}, nil, unknown.Ref, "newer"},
		"unknown field":         {[]wire.Piece{newer}, nil, newer.Ref, "newer"},
		"twice":                 {[]wire.Piece{cluster("c9"), cluster("c9")}, nil, cluster("c9").Ref, "twice"},
		"node twice":            {[]wire.Piece{node, node}, nil, node.Ref, "twice"},
		"policy gone":           {nil, []wire.Ref{{Kind: wire.KindPolicy, Name: "default/p"}}, wire.Ref{Kind: wire.KindListener, Name: "in"}, `policy "default/p"`},
		"routes gone":           {nil, []wire.Ref{{Kind: wire.KindRoutes, Name: "r"}}, wire.Ref{Kind: wire.KindListener, Name: "in"}, `routes "r"`},
		"cluster gone":          {nil, []wire.Ref{{Kind: wire.KindCluster, Name: "c1"}}, wire.Ref{Kind: wire.KindRoutes, Name: "r"}, `cluster "c1"`},
		"limit gone":            {nil, []wire.Ref{{Kind: wire.KindLimit, Name: "RateLimit/default/l"}}, wire.Ref{Kind: wire.KindListener, Name: "in"}, `limit "RateLimit/default/l"`},
		"TCP route's cluster":   {nil, []wire.Ref{{Kind: wire.KindCluster, Name: "c5"}}, wire.Ref{Kind: wire.KindListener, Name: "in"}, `cluster "c5"`},
		"node gone":             {nil, []wire.Ref{{Kind: wire.KindNode}}, wire.Ref{Kind: wire.KindNode}, "missing"},
	} {
		before := state(t, sample())
		next, bad := before.With(tc.set, tc.removed)
		if next != nil || len(bad) == 0 || bad[0].Ref != tc.blames || !strings.Contains(bad[0].Reason, tc.reason) {
			t.Errorf("%s: got %v, want %s blamed for %q", what, bad, tc.blames, tc.reason)
		}
	}
}

// A secret that is missing closes what refers to it (plan.Secret), and nothing else.
func TestSecretGoneIsNoReasonToRefuse(t *testing.T) {
	before := state(t, sample())
	next, bad := before.With(nil, []wire.Ref{{Kind: wire.KindSecret, Name: "default/s"}})
	if len(bad) > 0 || len(next.Plan.Secrets) != 0 {
		t.Errorf("%v, %d secrets left", bad, len(next.Plan.Secrets))
	}
}

func TestFrames(t *testing.T) {
	hello := wire.Hello{Node: ident.Name{Namespace: "n", Name: "x"}, Have: []wire.Have{{Ref: wire.Ref{Kind: wire.KindNode}, Hash: wire.Hash{1}}}}
	stream, err := wire.AppendFrame(nil, wire.TypeHello, &hello)
	if err != nil {
		t.Fatal(err)
	}
	first := len(stream)
	if stream, err = wire.AppendFrame(stream, wire.TypeHeartbeat, nil); err != nil {
		t.Fatal(err)
	}
	r := wire.NewReader(iotest.OneByteReader(bytes.NewReader(stream)))
	mt, body, err := r.Next(1000)
	if err != nil {
		t.Fatal(err)
	}
	var got wire.Hello
	if err := wire.Decode(mt, wire.TypeHello, body, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(hello, got); diff != "" {
		t.Errorf("-sent +received:\n%s", diff)
	}
	if err := wire.Decode(mt, wire.TypeAck, body, new(wire.Ack)); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("a hello taken for an ack: %v", err)
	}
	if mt, body, err := r.Next(0); mt != wire.TypeHeartbeat || len(body) > 0 || err != nil {
		t.Errorf("heartbeat: %s, %d bytes, %v", mt, len(body), err)
	}
	if _, _, err := r.Next(1000); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
	if _, _, err := wire.NewReader(bytes.NewReader(stream)).Next(first - 6); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("over the limit: %v", err)
	}
	for cut := 1; cut < first; cut++ {
		if _, _, err := wire.NewReader(bytes.NewReader(stream[:cut])).Next(1000); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", cut, err)
		}
	}
}

func TestKindNames(t *testing.T) {
	for k := wire.KindNode; k <= wire.KindLimit; k++ {
		if got := wire.KindByName(k.String()); got != k {
			t.Errorf("%s is the name of %s", k, got)
		}
	}
	if wire.KindByName("") != 0 || wire.KindByName("kind 99") != 0 {
		t.Error("words that name no kind name one")
	}
}

// FuzzFrames: whatever comes, a reader neither panics nor hands out more than its limit, and a delta that is accepted makes a
// plan whose references hold.
func FuzzFrames(f *testing.F) {
	var all []wire.Piece
	wire.Walk(sample(), func(ref wire.Ref, piece any) {
		e, err := wire.Encode(ref, piece)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, e)
	})
	seed, err := wire.AppendFrame(nil, wire.TypeDelta, &wire.Delta{Nonce: 1, Set: all, Complete: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 6})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 16
		r := wire.NewReader(bytes.NewReader(b))
		for {
			mt, body, err := r.Next(limit)
			if err != nil {
				return
			}
			if len(body) > limit {
				t.Fatalf("%d bytes, limit %d", len(body), limit)
			}
			var d wire.Delta
			if codec.Unmarshal(body, &d) != nil || mt != wire.TypeDelta {
				continue
			}
			if next, bad := wire.NewState(nil).With(d.Set, d.Removed); len(bad) == 0 && len(wire.Check(next.Plan, &packed.Plan{})) > 0 {
				t.Fatal("a plan with open references was accepted")
			}
		}
	})
}
