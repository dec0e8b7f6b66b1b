package serve

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
)

// BenchmarkFanOut is one endpoint change for 1,000 subscribers with 200 services each, in memory: from SetEndpoints to the last
// acknowledgement. TLS is left out: it is crypto/tls' cost, not ours.
func BenchmarkFanOut(b *testing.B) {
	const subscribers, services = 1000, 200
	authority, err := ca.Open(ca.Options{})
	if err != nil {
		b.Fatal(err)
	}
	acks := make(chan struct{}, subscribers)
	s := New(Options{Authority: authority, OnEvent: func(e Event) {
		if e.Kind == EventAck {
			acks <- struct{}{}
		}
	}})
	shared := &plan.Plan{}
	for i := range services {
		name := fmt.Sprintf("outbound|80||s%04d.default.svc.cluster.local", i)
		shared.Clusters = append(shared.Clusters, plan.Cluster{Name: name})
		shared.Endpoints = append(shared.Endpoints, plan.Endpoints{Cluster: name, Endpoints: []plan.Endpoint{{Address: "10.0.0.1:80"}}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2*subscribers)
	names := make([]ident.Name, subscribers)
	for i := range names {
		names[i] = ident.Name{Namespace: "default", Name: fmt.Sprintf("p%04d", i)}
		p := *shared
		p.Node.Name = names[i]
		if err := s.SetPlan(names[i], &p); err != nil {
			b.Fatal(err)
		}
		server, client := net.Pipe()
		ss := &session{
			s: s, conn: server, reader: wire.NewReader(server), node: names[i],
			wake: make(chan struct{}, 1), replies: make(chan reply, 1), expires: time.Now().Add(time.Hour),
		}
		go func() {
			defer func() { done <- struct{}{} }()
			ss.run(ctx, ProxyStatus{Node: ss.node})
		}()
		go func() {
			defer func() { done <- struct{}{} }()
			ackAll(client)
		}()
	}
	wait := func() {
		for range subscribers {
			<-acks
		}
	}
	wait()
	for n := 0; b.Loop(); n++ {
		e := plan.Endpoints{Cluster: shared.Clusters[n%services].Name, Endpoints: []plan.Endpoint{{Address: fmt.Sprintf("11.%d.%d.%d:80", n>>16&255, n>>8&255, n&255)}}}
		if err := s.SetEndpoints(e, names); err != nil {
			b.Fatal(err)
		}
		wait()
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/subscribers, "ns/subscriber")
	cancel()
	for range 2 * subscribers {
		<-done
	}
}

// ackAll is a proxy that likes everything.
func ackAll(conn net.Conn) {
	r := wire.NewReader(conn)
	for {
		t, body, err := r.Next(wire.MaxDelta)
		if err != nil {
			_, _ = io.Copy(io.Discard, conn)
			return
		}
		var d wire.Delta
		if t != wire.TypeDelta || wire.Decode(t, t, body, &d) != nil || !d.Complete {
			continue
		}
		frame, err := wire.AppendFrame(nil, wire.TypeAck, &wire.Ack{Nonce: d.Nonce})
		if err != nil {
			return
		}
		if _, err := conn.Write(frame); err != nil {
			return
		}
	}
}
