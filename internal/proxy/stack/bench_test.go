package stack

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// nobody is a client without a connection: what is left is the layers and the endpoint.
type nobody struct {
	req    message.Request
	fields [8]message.Field
	status int
}

func (n *nobody) Request() *message.Request                  { return &n.req }
func (n *nobody) ReadBody() ([]byte, error)                  { return nil, io.EOF }
func (n *nobody) Trailers() message.Fields                   { return nil }
func (n *nobody) WriteInformational(*message.Response) error { return nil }
func (n *nobody) WriteHead(r *message.Response, _ bool) error {
	n.status = r.Status
	return nil
}
func (n *nobody) WriteBody([]byte, bool) error       { return nil }
func (n *nobody) WriteTrailers(message.Fields) error { return nil }
func (n *nobody) Flush() error                       { return nil }
func (n *nobody) Reset(stream.Cause)                 {}
func (n *nobody) Hijack() error                      { return nil }

var asks = message.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a.example"), Host: []byte("a.example"),
	Path: []byte("/api/last/one"), Major: 1, Minor: 1, Fields: message.Fields{{Name: []byte("user-agent"), Value: []byte("bench")}, {Name: []byte("accept"), Value: []byte("*/*")}}}

func (n *nobody) again() {
	n.req = asks
	n.req.Fields = append(n.fields[:0], asks.Fields...)
}

// answering is an endpoint that answers whatever comes with as little work as possible.
func answering(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = nc.Close() }()
				buf := make([]byte, 4096)
				for {
					if _, err := nc.Read(buf); err != nil {
						return
					}
					if _, err := nc.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n")); err != nil {
						return
					}
				}
			}()
		}
	}()
	b.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func BenchmarkExchange(b *testing.B) {
	address := answering(b)
	for _, bc := range []struct {
		name   string
		routes int // that the request passes by, other paths
		route  plan.Route
	}{
		{"direct/1", 0, plan.Route{Direct: &plan.DirectResponse{Status: 204}}},
		{"direct/100", 99, plan.Route{Direct: &plan.DirectResponse{Status: 204}}},
		{"direct/10000", 9999, plan.Route{Direct: &plan.DirectResponse{Status: 204}}},
		{"forward/1", 0, plan.Route{Forward: []plan.Destination{{Cluster: "c"}}}},
		{"forward/10000", 9999, plan.Route{Forward: []plan.Destination{{Cluster: "c"}}}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			var routes []plan.Route
			for i := range bc.routes {
				routes = append(routes, plan.Route{Match: plan.Match{Path: &match.String{Kind: match.Segment, Value: fmt.Sprintf("/api/%d", i)}}})
			}
			bc.route.Match.Path = &match.String{Kind: match.Segment, Value: "/api/last"}
			rt, err := route.Build(&plan.RouteTable{Hosts: []plan.VirtualHost{{Domains: []string{"*"}, Routes: append(routes, bc.route)}}})
			if err != nil {
				b.Fatal(err)
			}
			set := upstream.New(upstream.Options{})
			update(b, set, []plan.Cluster{{Name: "c", Protocol: ident.HTTP}}, []plan.Endpoints{{Cluster: "c", Endpoints: []plan.Endpoint{{Address: address}}}})
			s := New(Config{Node: &plan.Node{}, Listener: &plan.Listener{Direction: plan.Inbound}, Table: rt, Upstreams: set,
				Recorder: telemetry.New(telemetry.Options{}), Mirrors: &Mirrors{}})
			peer := &conn.Peer{Remote: netip.MustParseAddrPort("127.0.0.1:1"), Local: netip.MustParseAddrPort("127.0.0.1:2")}
			n := &nobody{}
			b.ReportAllocs()
			for b.Loop() {
				n.again()
				s.Serve(n, peer)
			}
			if n.status != 204 {
				b.Fatal(n.status)
			}
		})
	}
}
