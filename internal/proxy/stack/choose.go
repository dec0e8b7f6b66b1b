package stack

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
	"unsafe"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// find sets the route, or the cluster of a host that the mesh does not know but may be reached.
func (x *exchange) find() bool {
	if string(x.req.Method) == "CONNECT" {
		// A forward proxy has taken its tunnels already (internal/proxy/server).
		return x.answer(405, telemetry.NoRoute, "connect_not_served", "CONNECT is not served by this listener")
	}
	found := x.lookup()
	if found.Host == nil {
		return x.unknownHost()
	}
	x.rec.VirtualHost = found.Host.Plan()
	if found.Route == nil {
		x.rec.Origin = &found.Host.Plan().Origin
		return x.answer(404, telemetry.NoRoute, "route_not_found", "no route matches this request")
	}
	x.route = found.Route
	x.rec.Route = found.Route.Plan()
	x.rec.Origin = &x.rec.Route.Origin
	if x.rec.Route.Retry != nil {
		x.host = stateOf(found.Host)
		x.host.budget.request(x.at)
	}
	x.bound()
	return true
}

// lookup asks the table.
func (x *exchange) lookup() route.Result {
	if x.s.authority != nil {
		x.req.Authority, x.req.Host, x.req.Port = x.s.authority, x.s.host, x.s.Listener.Port
	}
	if x.p.Captured && x.p.Target.IsValid() {
		return x.s.Table.FindCaptured(x.p.Target.Addr(), x.req.Host, x.req)
	}
	return x.s.Table.Find(x.req.Host, x.req)
}

// bound sets the deadline of the exchange: the route's, the one that the application asks for instead, or the client's own,
// which gRPC sends along. Whoever passes it on
// and sees it pass first gives up the rest of the way in time.
func (x *exchange) bound() {
	if d := x.rec.Route.Response.D(); d > 0 {
		x.headBy = x.at.Add(d)
	}
	if x.idle = x.rec.Route.Idle.D(); x.idle > 0 {
		x.moved = x.at
	}
	limit := x.rec.Route.Timeout.D()
	if x.within >= 0 {
		limit = x.within
	}
	if x.grpc {
		if v, ok := x.req.Fields.Get("grpc-timeout"); ok {
			if t, ok := grpcTimeout(v); ok && (limit <= 0 || t < limit) {
				limit = max(t, 1)
			}
		}
	}
	if limit > 0 {
		x.deadline = x.at.Add(limit)
	}
}

// wholeMillis reads a whole number of milliseconds, of at most 9 digits.
func wholeMillis(v []byte) (time.Duration, bool) {
	if len(v) == 0 || len(v) > 9 {
		return 0, false
	}
	var n time.Duration
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + time.Duration(c-'0')
	}
	return n * time.Millisecond, true
}

// grpcTimeout reads a grpc-timeout field: at most 8 digits and a unit ("PROTOCOL-HTTP2", Requests).
func grpcTimeout(v []byte) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	var n time.Duration
	for _, c := range v[:len(v)-1] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + time.Duration(c-'0')
	}
	switch v[len(v)-1] {
	case 'H':
		return min(n, 100_000) * time.Hour, true // a century is the most that a Duration holds
	case 'M':
		return n * time.Minute, true
	case 'S':
		return n * time.Second, true
	case 'm':
		return n * time.Millisecond, true
	case 'u':
		return n * time.Microsecond, true
	case 'n':
		return n, true
	}
	return 0, false
}

// fromExtendedConnect turns HTTP/2's way to open a WebSocket (RFC 8441) into that of HTTP/1.1, which routes, policies and
// endpoints know. The connections translate back where HTTP/2 is spoken.
func (x *exchange) fromExtendedConnect() {
	x.req.Method, x.req.Length = methodGET, 0 // what follows on the stream is the tunnel's
	if _, ok := x.req.Fields.Get("sec-websocket-key"); !ok && string(x.req.Upgrade) == "websocket" {
		// RFC 6455 section 4.1 wants a nonce from the client; RFC 8441 section 5 has none.
		var nonce [16]byte
		a, b := rand.Uint64(), rand.Uint64()
		for i := range 8 {
			nonce[i], nonce[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
		}
		start := len(x.buf)
		x.buf = base64.StdEncoding.AppendEncode(x.buf, nonce[:])
		x.add(nameWebSocketKey, x.buf[start:len(x.buf):len(x.buf)])
	}
}

var (
	methodGET        = []byte("GET")
	nameWebSocketKey = []byte("sec-websocket-key")
)

func (x *exchange) unknownHost() bool {
	// Where it was captured it goes on to where it was going, whatever it says: the name may lead elsewhere, or nowhere.
	target := x.p.Captured && x.p.Target.IsValid()
	fate, within := x.s.Table.Plan().Otherwise, upstream.Within(nil)
	if o := x.s.Outside; o != nil && fate != plan.NotFound {
		addr := x.p.Target.Addr()
		if !target {
			addr, _ = netip.ParseAddr(string(x.req.Host)) // not valid: a name
		}
		fate, x.rec.Origin = o.Fate(addr)
		within = o
	}
	switch fate {
	case plan.Passthrough:
		if x.s.NoPassthrough {
			break
		}
		if target {
			t := x.p.Target
			x.cluster = x.s.Upstreams.Passthrough(t.Addr().String(), int(t.Port()), within)
			return true
		}
		port := x.req.Port
		if port == 0 {
			port = 80
			if string(x.req.Scheme) == "https" {
				port = 443
			}
		}
		x.cluster = x.s.Upstreams.Passthrough(string(x.req.Host), port, within)
		return true
	case plan.Block:
		return x.blocked()
	}
	return x.answer(404, telemetry.NoRoute, "host_not_found", "no service of the mesh has this host")
}

// blocked answers for a host, or an address of one, that may not be reached.
func (x *exchange) blocked() bool {
	return x.answer(502, telemetry.NoRoute, blockedDetail, blockedText)
}

// inject delays and aborts as the route's fault says, each with its own probability (Istio HTTPFaultInjection).
func (x *exchange) inject() bool {
	if x.route == nil || x.rec.Route.Fault == nil {
		return true
	}
	f := x.rec.Route.Fault
	if f.Delay > 0 && chance(f.DelayPercent) {
		x.rec.Flags |= telemetry.DelayInjected
		if !x.sleep(f.Delay.D()) {
			return x.abandon()
		}
		x.now()
		x.bound() // the route's timeout is about the destination, not about the delay
	}
	if (f.AbortStatus != 0 || f.AbortGRPC != nil) && chance(f.AbortPercent) {
		const detail, text = "fault_filter_abort", "fault filter abort"
		x.charge()
		switch {
		case f.AbortGRPC == nil:
			return x.answer(f.AbortStatus, telemetry.FaultInjected, detail, text)
		case x.grpc:
			return x.answerGRPC(*f.AbortGRPC, telemetry.FaultInjected, detail, text)
		}
		return x.answer(httpFromGRPC(*f.AbortGRPC), telemetry.FaultInjected, detail, text)
	}
	return true
}

func chance(percent float64) bool {
	return percent >= 100 || percent > 0 && rand.Float64()*100 < percent
}

// reply answers redirects and direct responses.
func (x *exchange) reply() bool {
	if x.route == nil {
		return true
	}
	p := x.rec.Route
	switch {
	case p.Redirect != nil:
		return x.redirect(x.route.Redirect())
	case p.Direct != nil:
		x.resp.Reset()
		x.resp.Status = p.Direct.Status
		if len(p.Direct.Body) > 0 {
			x.resp.Fields.Add("content-type", []byte("text/plain"))
		}
		return x.local("direct_response", p.Direct.Body)
	}
	return true
}

// redirect sends the client elsewhere.
func (x *exchange) redirect(r *route.Redirect) bool {
	start := len(x.buf)
	buf, ok := r.AppendLocation(x.buf, x.req)
	x.buf = buf
	if !ok {
		return x.answer(400, telemetry.InvalidHeader, "redirect_path", "the redirected path would not be canonical")
	}
	x.resp.Reset()
	x.resp.Status = r.Status()
	x.resp.Fields.Add("location", x.buf[start:len(x.buf):len(x.buf)])
	return x.local("direct_response", nil)
}

// choose draws the destination.
func (x *exchange) choose() bool {
	if x.route != nil {
		i := x.returning()
		if i < 0 {
			i = x.route.Pick(rand.Uint64())
		}
		if i < 0 {
			return x.answer(503, telemetry.NoCluster, "no_destination", "the route has no destination")
		}
		d := &x.rec.Route.Forward[i]
		if d.Status != 0 {
			return x.answer(int(d.Status), telemetry.NoCluster, "invalid_destination", "the route's destination can't be used")
		}
		x.ops, x.rewriter, x.mirrors = &d.Headers, x.route.Rewriter(i), d.Mirrors
		if x.cluster = x.s.clusters.Cluster(d.Cluster); x.cluster == nil {
			return x.answer(503, telemetry.NoCluster, "cluster_not_found", "the route's destination does not exist")
		}
		redirect, cors := x.route.Share(i)
		if cors != nil && !x.shareBy(cors) {
			return false
		}
		if redirect != nil {
			return x.redirect(redirect)
		}
	}
	x.rec.Cluster = x.cluster.Plan()
	return true
}

// rewrite makes the request what the destination shall see.
func (x *exchange) rewrite() bool {
	if x.route == nil {
		return true
	}
	if x.rewriter != nil {
		before := x.req.Path
		buf, ok := x.rewriter.Apply(x.req, x.buf)
		x.buf = buf
		if !ok {
			return x.answer(400, telemetry.InvalidHeader, "rewrite_path", "the rewritten path would not be canonical")
		}
		if x.rewriter.ChangesPath() {
			x.rec.Original, x.rec.Path = before, x.req.Path
			x.req.Fields.Del("x-envoy-original-path")
			if x.req.HasQuery { // as Envoy: of the path with its query
				start := len(x.buf)
				x.buf = append(append(append(x.buf, before...), '?'), x.req.Query...)
				x.add(nameOriginalPath, x.buf[start:len(x.buf):len(x.buf)])
			} else {
				x.add(nameOriginalPath, before)
			}
		}
	}
	// As Envoy: the destination's first, then the route's, so that the wider rule has the last word on "set".
	x.apply(&x.req.Fields, &x.ops.Request)
	x.apply(&x.req.Fields, &x.rec.Route.Headers.Request)
	return true
}

// apply changes headers: remove, set, add.
func (x *exchange) apply(fs *message.Fields, ops *plan.FieldOps) {
	for _, name := range ops.Remove {
		fs.Del(name)
	}
	for i := range ops.Set {
		f := &ops.Set[i]
		if f.Name == "host" || f.Name == ":authority" {
			x.setAuthority(f.Value)
			continue
		}
		value := x.valueOf(f)
		if f.Format != nil && len(value) == 0 {
			continue
		}
		fs.Del(f.Name)
		*fs = append(*fs, message.Field{Name: bytesOf(f.Name), Value: value})
	}
	for i := range ops.Add {
		f := &ops.Add[i]
		if value := x.valueOf(f); f.Format == nil || len(value) > 0 {
			*fs = append(*fs, message.Field{Name: bytesOf(f.Name), Value: value})
		}
	}
}

func (x *exchange) setAuthority(v string) {
	if authority, host, port, err := message.ParseAuthority(x.made(v)); err == nil {
		x.req.Authority, x.req.Host, x.req.Port = authority, host, port
	}
}

// bytesOf returns the bytes of a string of the plan without copying. They must not be written to: header values are only
// read from here on.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// checkOps refuses header operations that could break a message's framing, whoever wrote the plan.
func checkOps(ops *plan.HeaderOps) error {
	for _, side := range [...]*plan.FieldOps{&ops.Request, &ops.Response} {
		for n, list := range [...][]plan.Field{side.Set, side.Add} {
			for i := range list {
				f := &list[i]
				request := side == &ops.Request
				if request && n == 0 && (f.Name == "host" || f.Name == ":authority") {
					if f.Format != nil {
						return fmt.Errorf("header %s: variables can't name a host", f.Name)
					}
					if _, _, _, err := message.ParseAuthority([]byte(f.Value)); err != nil {
						return fmt.Errorf("header %s: %q is not a host", f.Name, f.Value)
					}
					continue
				}
				if !isFieldName(f.Name) || hopField(f.Name) || request && f.Name == "host" {
					return fmt.Errorf("header %q cannot be set by a rule", f.Name)
				}
				if f.Format != nil {
					if err := checkFormat(f, request); err != nil {
						return err
					}
					continue
				}
				if !message.IsValue([]byte(f.Value)) {
					return fmt.Errorf("header %s: %q is not a header value", f.Name, f.Value)
				}
			}
		}
	}
	return nil
}

// hopField names the fields that belong to the codecs.
func hopField(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "content-length", "http2-settings":
		return true
	}
	return false
}
