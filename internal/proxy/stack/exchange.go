package stack

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// exchange is one request and its response. It belongs to the goroutine of Serve and is reused.
type exchange struct {
	s       *Stack
	d       stream.Downstream
	watched stream.Watched // d, if it can be watched
	p       *conn.Peer
	req     *message.Request
	rec     telemetry.Record

	client   netip.Addr    // whom the request comes from: the connection's other end, or who a trusted proxy in front says
	at       time.Time     // the last time that was read
	deadline time.Time     // of the whole exchange; zero: none
	headBy   time.Time     // of the response head; zero: none
	idle     time.Duration // how long nothing may move; 0: the connections' own limits
	moved    time.Time     // when something did, with idle
	within   time.Duration // the time that the application asked for, instead of the rule's; below 0: it did not
	grpc     bool
	in, out  messages // with grpc
	explain  bool     // the application wants to know where the answer came from

	host    *hostState
	route   *route.Route
	cluster *upstream.Cluster
	ops     *plan.HeaderOps // of the destination

	rewriter *route.Rewriter // of the destination; nil: nothing is rewritten
	mirrors  []plan.Mirror   // of the destination, besides the route's

	cors      *route.CORS // the policy of a cross-origin request that it allows; nil: there is nothing to say
	origin    []byte
	excess    limit.Excess // of the limit that was passed
	newCookie []byte       // that the client is to meet its endpoint by again
	since     int64        // when its session began, Unix seconds, where that counts; 0: now
	asked     []byte       // the authority before it became the endpoint's

	attempt upstream.Attempt
	tried   [4]*upstream.Endpoint
	lease   *upstream.Lease
	served  *upstream.Endpoint // of the last attempt
	resp    message.Response
	body    body

	requestEnded bool   // all of the request came
	sent         bool   // an attempt got as far as a connection, and what was sent over it must not be repeated unasked
	responded    bool   // a response head was written
	whole        bool   // the response was there to its end when its head was: at is when that was
	notified     bool   // the client's connection will cancel the lease when the client leaves
	buf          []byte // header values that we make; grows by append only, so earlier slices stay valid
}

// run is the stack. A layer that answers the request itself returns false, and nothing below it runs.
func (x *exchange) run() {
	if !x.afford() || // memory for one more, before any of it is used
		!x.sanitize() || // first of all that looks at it, so that no later layer can be told lies by headers that only a proxy may write
		!x.authorize() || // who may not pass must learn nothing about what is behind: before routing and everything it shows
		!x.admit() || // rate limits of the listener; behind the policies, so that who may not pass uses nothing up
		!x.find() || // the one route that applies; all that follows is its policy
		!x.share() || // cross-origin preflights, which browsers show to nobody and so must not fail by what comes now
		!x.limit() || // rate limits of the route
		!x.inject() || // faults stand for a failing destination, so before anything is sent, redirected or rewritten
		!x.reply() || // redirects and direct responses need no destination
		!x.choose() || // one destination, drawn once: a retry must not move a request to another version
		!x.rewrite() || // headers, path and authority as the destination shall see them, after all that matched on the old ones
		!x.keep() { // a small body is kept before anything is sent: so it goes out in one write and can be sent again
		return
	}
	x.meet()               // which endpoint it belongs to, if it does
	mirrored := x.mirror() // a copy of what is about to be sent
	if x.send() {          // attempts, until one gives a response or none is left
		x.respond() // what came back, streamed
	}
	if !mirrored {
		x.mirror() // a body that was not known to be small when it began, and was
	}
}

func (x *exchange) begin(s *Stack, d stream.Downstream, p *conn.Peer) {
	x.s, x.d, x.p, x.req = s, d, p, d.Request()
	x.watched, _ = d.(stream.Watched)
	x.now()
	x.client = p.Remote.Addr()
	x.deadline, x.headBy, x.idle, x.within = time.Time{}, time.Time{}, 0, -1
	if x.grpc = isGRPC(x.req); x.grpc {
		x.in, x.out = messages{}, messages{}
	}
	x.explain, x.sent, x.responded, x.whole, x.notified = false, false, false, false, false
	x.buf = x.buf[:0]
	x.resp.Reset()
	x.body.reset()

	r := &x.rec
	r.Reset()
	r.Start = x.at
	r.Listener, r.Direction = s.Listener, s.Listener.Direction
	switch {
	case x.grpc && x.req.Major == 2:
		r.Protocol = telemetry.GRPC
	case x.req.Major == 2:
		r.Protocol = telemetry.HTTP2
	case x.req.Minor == 0:
		r.Protocol = telemetry.HTTP10
	default:
		r.Protocol = telemetry.HTTP11
	}
	r.Method, r.Authority = x.req.Method, x.req.Authority
	r.Path, r.Query, r.HasQuery = x.req.Path, x.req.Query, x.req.HasQuery
	r.Remote, r.Local, r.SNI = p.Remote, p.Local, p.SNI
	r.Peer, _ = p.Tag.(*telemetry.Party)
	r.MTLS = p.TLS && !p.Identity.IsZero()
}

// end records the exchange and lets go of everything that it held.
func (x *exchange) end() {
	if err := x.d.Flush(); err != nil && x.rec.Flags == 0 {
		x.rec.Flags |= telemetry.DownstreamClosed
	}
	if !x.whole {
		x.now()
	}
	if d, ok := x.d.(conn.Stamped); ok {
		in, out := d.Stamp(x.at)
		x.rec.HeadIn, x.rec.HeadOut = uint64(in), uint64(out)
	}
	if x.grpc {
		x.rec.MessagesIn, x.rec.MessagesOut = x.in.done, x.out.done
	}
	x.rec.Duration = x.at.Sub(x.rec.Start)
	x.s.Recorder.Record(&x.rec)

	x.s, x.d, x.watched, x.p, x.req = nil, nil, nil, nil, nil
	x.host, x.route, x.cluster, x.ops, x.served, x.rewriter = nil, nil, nil, nil, nil, nil
	x.cors, x.origin, x.newCookie, x.asked = nil, nil, nil, nil
	x.excess, x.since = limit.Excess{}, 0
	x.attempt = upstream.Attempt{}
	x.tried = [4]*upstream.Endpoint{}
	x.rec.Reset() // nothing of a plan or buffer is kept alive by the pool
	if cap(x.buf) > 16<<10 {
		x.buf = nil
	}
}

func (x *exchange) now() { x.at = time.Now() }

// made appends to the exchange's own bytes and returns what was appended.
func (x *exchange) made(parts ...string) []byte {
	start := len(x.buf)
	for _, p := range parts {
		x.buf = append(x.buf, p...)
	}
	return x.buf[start:len(x.buf):len(x.buf)]
}

var grpcType = []byte("application/grpc")

// isGRPC tells gRPC by its content type: application/grpc, alone or with a "+" or ";" suffix (not grpc-web).
func isGRPC(r *message.Request) bool {
	if r.Major != 2 {
		return false
	}
	v, _ := r.Fields.Get("content-type")
	return bytes.HasPrefix(v, grpcType) && (len(v) == len(grpcType) || v[len(grpcType)] == '+' || v[len(grpcType)] == ';')
}
