package stack

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// Retry pauses, as Envoy has them: full jitter below base × (2^n − 1), at most max.
const (
	backoffBase = 25 * time.Millisecond
	backoffMax  = 10 * backoffBase
)

// While a response is awaited, the exchange looks after its client: first after firstLook, then in ever longer steps up to
// lastLook. A client that can say itself when it leaves (stream.Notifier) is asked to at the first look, and after that
// there is nothing to look for but the deadline. Until the first look it costs nothing.
const (
	firstLook  = 100 * time.Millisecond
	lastLook   = time.Second
	toldByPeer = 16 * time.Second
)

// maxInterim bounds the 1xx responses of one exchange.
const maxInterim = 16

// send makes attempts until one brings a response head that is to be passed on (true), or answers itself.
func (x *exchange) send() bool {
	retries := 0
	if r := x.retry(); r != nil {
		retries = r.Attempts
	}
	for {
		x.rec.Attempts++
		sent := x.sent // by an attempt before
		err := x.try()
		if err != nil {
			x.now()
		}
		good := err == nil && !x.retriesStatus()
		if x.attempt.Retry {
			x.host.budget.ended(x.at, good)
		}
		if good {
			return true
		}
		if err != nil && x.grpc && errors.Is(err, stream.ErrReset) && !x.deadline.IsZero() && !x.at.Before(x.deadline) {
			err = stream.ErrDeadline // the endpoint knows the client's deadline too, and was a little faster
		}
		if err != nil && x.clientIsGone(err) {
			x.finish(err)
			x.stopBody()
			if why := x.body.readBy; why != nil {
				return x.clientFailed(why) // it may still be there, and have sent what nobody can read
			}
			return x.abandon()
		}
		first := x.rec.Attempts == 1
		refused := errors.Is(err, stream.ErrRefused)
		unread := x.s.inbound && errors.Is(err, stream.ErrUnread)
		stale := first && (unread || errors.Is(err, stream.ErrStale) && idempotent(x.req.Method))
		if refused || unread || stale {
			x.sent = sent
		}
		switch {
		case !x.repeatable():
		case stale:
			// The pooled connection had ended before the request came: that is the pool's misfortune and not a failure of
			// the endpoint, so it costs no retry (RFC 9112 section 9.3.1), and nothing was sent that may not be sent again.
			x.finish(err)
			continue
		case retries > 0 && (err == nil || x.retriesError(err)):
			if !x.affordRetry() {
				break
			}
			retries--
			x.attempt.Retry = true
			x.finish(err)
			switch err := x.pause(); err {
			case nil:
			case errGone:
				x.stopBody()
				return x.abandon()
			default:
				return x.fail(err)
			}
			x.rec.Flags &^= telemetry.UpstreamConnectFailure | telemetry.UpstreamClosed | telemetry.UpstreamReset
			x.s.Recorder.Proxy.Retries.Inc()
			continue
		case first && refused: // where no rule says how often, once (RFC 9113 section 8.7)
			x.finish(err)
			continue
		}
		if err == nil {
			if retries == 0 && x.rec.Attempts > 1 {
				x.rec.Flags |= telemetry.UpstreamRetryLimit
			}
			return true // the last answer is passed on as it is
		}
		if r := x.retry(); r != nil && r.Attempts > 0 && retries == 0 && x.retriesError(err) {
			x.rec.Flags |= telemetry.UpstreamRetryLimit
		}
		x.finish(err)
		return x.fail(err)
	}
}

func (x *exchange) retry() *plan.Retry {
	if x.route == nil || len(x.req.Upgrade) > 0 {
		return nil
	}
	return x.rec.Route.Retry
}

// try makes one attempt: it returns nil with a final response head in x.resp, or the reason why there is none.
func (x *exchange) try() error {
	a := &x.attempt
	a.HTTP2, a.HTTP1 = x.req.Major == 2, len(x.req.Upgrade) > 0
	// A program that speaks HTTP/2 to a service, unasked, knows that it can. What a stranger has agreed on with an edge says
	// nothing about what is behind it, but for gRPC, which is HTTP/2 everywhere.
	a.Detected = a.HTTP2 && (!x.s.edge || x.grpc)
	a.Deadline = earlier(x.deadline, x.headBy)
	if r := x.retry(); r != nil && r.PerTry > 0 {
		a.Deadline = earlier(a.Deadline, x.at.Add(r.PerTry.D()))
	}
	lease, err := x.cluster.Acquire(a)
	if err != nil {
		var connect *upstream.ConnectError
		if errors.As(err, &connect) && connect.Endpoint != nil {
			x.served = connect.Endpoint // to be avoided by a retry
		}
		return err
	}
	x.lease, x.served, x.sent = lease, lease.Endpoint, true
	x.rec.Endpoint = lease.Endpoint.Plan()
	x.note(lease)
	if x.rewriter.EndpointHost() {
		x.nameEndpoint()
	}

	empty := x.body.empty()
	if err := lease.WriteHead(x.req, empty); err != nil {
		return x.sendFailed(err)
	}
	if empty {
		err = lease.Flush()
	} else {
		err = x.sendBody(lease)
	}
	if err != nil {
		return x.sendFailed(err)
	}
	return x.await(a.Deadline)
}

// sendFailed looks for a response after writing failed: an endpoint may answer and close before it read everything.
func (x *exchange) sendFailed(err error) error {
	if errors.Is(err, stream.ErrReset) {
		if rerr := x.await(x.attempt.Deadline); rerr == nil || errors.Is(rerr, stream.ErrStale) {
			return rerr
		}
	}
	return err
}

// await reads heads until the final one.
func (x *exchange) await(deadline time.Time) error {
	sent, look := x.at, firstLook
	for interim := 0; ; {
		x.boundRead(deadline, look)
		err := x.lease.ReadHead(&x.resp)
		switch {
		case err == nil && (x.resp.Status >= 200 || x.resp.Status == 101):
			x.now()
			x.rec.ServiceTime = x.at.Sub(sent)
			return nil
		case err == nil:
			if interim++; interim > maxInterim {
				return stream.ErrProtocol
			}
			if x.resp.Status != 100 { // our client was let go on by its own connection
				_ = x.d.WriteInformational(&x.resp)
			}
			x.now()
			x.moved = x.at
		case errors.Is(err, stream.ErrDeadline):
			x.now()
			if !deadline.IsZero() && !x.at.Before(deadline) {
				return stream.ErrDeadline
			}
			if x.stood() {
				return errIdle
			}
			if look = x.lookAfterClient(look); look == 0 {
				return errGone
			}
		default:
			return err
		}
	}
}

// boundRead makes the next read of the response end at the deadline, or sooner to look after the client.
func (x *exchange) boundRead(deadline time.Time, look time.Duration) {
	by := x.at.Add(look)
	if !deadline.IsZero() && deadline.Before(by) {
		by = deadline
	}
	if x.idle > 0 {
		by = earlier(by, x.moved.Add(x.idle))
	}
	x.lease.SetReadDeadline(by)
}

// earlier returns the earlier of two times, of which a zero one is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// stood reports whether nothing has moved in either direction for the route's idle time.
func (x *exchange) stood() bool {
	if x.idle <= 0 {
		return false
	}
	if b := &x.body; b.pumping {
		if moved := x.rec.Start.Add(time.Duration(b.moved.Load())); moved.After(x.moved) {
			x.moved = moved
		}
	}
	return !x.at.Before(x.moved.Add(x.idle))
}

var (
	errGone = errors.New("the client went away")
	errIdle = errors.New("nothing moved for the stream's idle time")
)

// nameEndpoint makes the authority the name of the endpoint. One that is known by its address only keeps that of the request.
func (x *exchange) nameEndpoint() {
	name := x.lease.Endpoint.Host()
	if x.asked == nil {
		x.asked = x.req.Authority
	}
	if _, err := netip.ParseAddr(name); err == nil || strings.HasPrefix(x.lease.Endpoint.Address(), plan.UnixPrefix) {
		name = string(x.asked)
	}
	x.setAuthority(name)
}

func (x *exchange) gone() bool { return x.watched != nil && x.watched.Gone() }

// lookAfterClient returns how long the next wait may be, or 0 when the client is gone. From the first look on, a client
// that can say when it leaves makes the wait end at once.
func (x *exchange) lookAfterClient(look time.Duration) time.Duration {
	if x.gone() {
		return 0
	}
	if !x.notified {
		if n, ok := x.d.(stream.Notifier); ok {
			x.notified = true
			l := x.lease
			n.OnGone(func(c stream.Cause) { l.Cancel(c) })
		}
	}
	if x.notified {
		return toldByPeer
	}
	return min(2*look, lastLook)
}

// unnotify takes back what lookAfterClient asked for: the lease is about to be somebody else's.
func (x *exchange) unnotify() {
	if x.notified {
		x.notified = false
		x.d.(stream.Notifier).OnGone(nil)
	}
}

// clientIsGone reports whether an attempt failed because of the client.
func (x *exchange) clientIsGone(err error) bool {
	if err == errGone {
		return true
	}
	if !errors.Is(err, stream.ErrCancelled) {
		return false
	}
	if x.gone() {
		return true
	}
	if !x.body.pumping {
		return false
	}
	x.body.mu.Lock()
	defer x.body.mu.Unlock()
	return x.body.readBy != nil
}

// finish ends the attempt's lease and tells its outcome.
func (x *exchange) finish(err error) {
	if x.lease == nil {
		return
	}
	x.unnotify()
	x.detachBody(x.lease)
	status := x.resp.Status
	if err != nil {
		status = 0
	}
	if err == nil && x.grpc && status == 200 {
		code := x.rec.GRPCStatus
		if code == telemetry.NoGRPC {
			code = grpcStatus(x.resp.Fields)
		}
		status = httpFromGRPC(code)
	}
	if err == errGone {
		err = stream.ErrCancelled
	}
	l := x.lease
	x.lease = nil
	o := upstream.Outcome{Status: status, Err: err}
	if err == nil {
		o.Latency = x.rec.ServiceTime // how long the body then takes says more about its size, and a tunnel's end about its user
	}
	l.Done(o)
}

// retriesStatus reports whether the response is one that the route retries.
func (x *exchange) retriesStatus() bool {
	r := x.retry()
	if r == nil || r.Attempts == 0 {
		return false
	}
	status, on := x.resp.Status, r.On
	switch {
	case on&plan.RetryConnectFailure != 0 && (status == 503 || x.grpc) && x.wasUnsent():
		return true // to be sent to the sidecar is not to have come to its workload
	case status >= 500 && on&plan.Retry5xx != 0:
		return true
	case (status == 502 || status == 503 || status == 504) && on&plan.RetryGatewayError != 0:
		return true
	case status == 409 && on&plan.RetryRetriable4xx != 0:
		return true
	case on&plan.RetryStatusCodes != 0 && slices.Contains(r.StatusCodes, status):
		return true
	case on&plan.RetryFailureClass != 0 && telemetry.Failed(x.rec.Route.Classes, status, telemetry.NoGRPC):
		return true
	}
	const grpc = plan.RetryGRPCCancelled | plan.RetryGRPCDeadline | plan.RetryGRPCInternal | plan.RetryGRPCExhausted | plan.RetryGRPCUnavailable
	if on&grpc == 0 {
		return false
	}
	switch grpcStatus(x.resp.Fields) { // only a response of trailers alone can be retried: its head has the status
	case 1:
		return on&plan.RetryGRPCCancelled != 0
	case 4:
		return on&plan.RetryGRPCDeadline != 0
	case 8:
		return on&plan.RetryGRPCExhausted != 0
	case 13:
		return on&plan.RetryGRPCInternal != 0
	case 14:
		return on&plan.RetryGRPCUnavailable != 0
	}
	return false
}

// retriesError reports whether an attempt without a response is one that the route retries: each has a condition of its own, and
// some conditions are about all of them (Envoy RetryStateImpl::wouldRetryFromReset).
func (x *exchange) retriesError(err error) bool {
	on := x.rec.Route.Retry.On
	all := on&(plan.RetryReset|plan.Retry5xx|plan.RetryGatewayError) != 0
	var connect *upstream.ConnectError
	switch {
	case errors.As(err, &connect):
		return all || on&plan.RetryConnectFailure != 0
	case errors.Is(err, stream.ErrRefused),
		errors.Is(err, stream.ErrStale) && (errors.Is(err, stream.ErrUnread) || idempotent(x.req.Method)):
		return all || on&plan.RetryRefusedStream != 0
	case errors.Is(err, stream.ErrDeadline):
		// The time of the attempt, not that of the whole exchange.
		by := earlier(x.deadline, x.headBy)
		return all && (by.IsZero() || x.at.Before(by))
	case errors.Is(err, stream.ErrReset), errors.Is(err, stream.ErrProtocol):
		return all
	}
	return false
}

// repeatable reports whether the request can be sent again.
func (x *exchange) repeatable() bool {
	if x.responded || len(x.req.Upgrade) > 0 {
		return false
	}
	b := &x.body
	if !b.pumping {
		return b.whole
	}
	if !b.mu.TryLock() { // stuck in a write: that lease is over anyway
		x.detachBody(x.lease)
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	return !b.spilt && b.readBy == nil
}

func idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// affordRetry asks the limits of the cluster and the retry budget of the virtual host, while the answer that came can still be
// passed on instead.
func (x *exchange) affordRetry() bool {
	var allowed bool
	if x.lease != nil {
		allowed = x.lease.CanRetry()
	} else {
		allowed = x.cluster.CanRetry()
	}
	if allowed && x.host.budget.retry(x.at) {
		return true
	}
	x.s.Recorder.Proxy.RetriesRefused.Inc()
	x.rec.Flags |= telemetry.UpstreamOverflow
	return false
}

// pause waits before a retry, and avoids the endpoint that failed. It returns stream.ErrDeadline when there is no time for it, and
// errGone when the client has left meanwhile.
func (x *exchange) pause() error {
	r := x.rec.Route.Retry
	x.attempt.Farther = r.Farther
	if n := len(x.attempt.Avoid); !r.AnyHost && x.served != nil && n < len(x.tried) {
		x.tried[n] = x.served
		x.attempt.Avoid = x.tried[:n+1]
	}
	base, most := r.BackoffBase.D(), r.BackoffMax.D()
	if base <= 0 {
		base = backoffBase
	}
	if most <= 0 {
		most = max(backoffMax, base)
		if r.BackoffBase > 0 {
			most = 10 * base
		}
	}
	limit := min(base*time.Duration(1<<min(x.rec.Attempts, 16)-1), most)
	wait := time.Duration(rand.Int64N(int64(limit) + 1))
	x.now()
	if by := earlier(x.deadline, x.headBy); !by.IsZero() && x.at.Add(wait).After(by) {
		return stream.ErrDeadline
	}
	if !x.sleep(wait) {
		return errGone
	}
	x.now()
	if x.idle > 0 {
		x.moved = x.at
	}
	return nil
}

// blameCluster names the rule about the destination, where there is one, and not the one that led to it.
func (x *exchange) blameCluster() {
	if o := &x.cluster.Plan().Origin; !o.IsZero() {
		x.rec.Origin = o
	}
}

// fail answers for an upstream that gave no response.
func (x *exchange) fail(err error) bool {
	x.requestEnded = x.body.ending()
	x.stopBody()
	x.rec.Failure = ""
	var connect *upstream.ConnectError
	if errors.As(err, &connect) {
		x.rec.Failure = connect.Err.Error()
		if connect.Endpoint != nil {
			x.served = connect.Endpoint
			x.rec.Endpoint = connect.Endpoint.Plan()
			x.rec.UpstreamRemote, x.rec.UpstreamLocal = netip.AddrPort{}, netip.AddrPort{} // of an attempt before
		}
		if errors.Is(err, route.ErrOutside) {
			return x.blocked()
		}
		return x.answer(503, telemetry.UpstreamConnectFailure, "upstream_reset_before_response_started{connection_failure}",
			"upstream connect error: "+x.rec.Failure)
	}
	switch {
	case err == errIdle:
		if x.requestEnded {
			return x.answer(504, telemetry.StreamIdle, "stream_idle_timeout", "stream timeout")
		}
		return x.answer(408, telemetry.StreamIdle, "stream_idle_timeout", "stream timeout")
	case errors.Is(err, upstream.ErrNoHealthy):
		x.blameCluster()
		return x.answer(503, telemetry.NoHealthyUpstream, "no_healthy_upstream", "no healthy upstream")
	case errors.Is(err, upstream.ErrOverflow):
		x.blameCluster()
		return x.answer(503, telemetry.UpstreamOverflow, "upstream_reset_before_response_started{overflow}",
			"upstream connect error or disconnect/reset before headers. reset reason: overflow")
	case errors.Is(err, stream.ErrDeadline):
		return x.answer(504, telemetry.UpstreamTimeout, "upstream_response_timeout", "upstream request timeout")
	case errors.Is(err, stream.ErrNoForm): // no 5xx, for which whoever is before us would put the endpoint aside
		x.rec.Failure = err.Error()
		return x.answer(400, 0, "upgrade_unsupported", "the endpoint can't be asked for this upgrade: it speaks HTTP/2")
	case errors.Is(err, stream.ErrProtocol):
		x.rec.Failure = err.Error()
		return x.answer(502, telemetry.UpstreamProtocolError, "upstream_reset_before_response_started{protocol_error}",
			"upstream protocol error")
	case errors.Is(err, stream.ErrStreamReset):
		return x.answer(503, telemetry.UpstreamReset, "upstream_reset_before_response_started{remote_reset}",
			"upstream connect error or disconnect/reset before headers. reset reason: remote reset")
	case errors.Is(err, stream.ErrRefused):
		return x.answer(503, telemetry.UpstreamReset, "upstream_reset_before_response_started{remote_refused_stream_reset}",
			"upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset")
	case errors.Is(err, stream.ErrReset), errors.Is(err, stream.ErrCancelled):
		return x.answer(503, telemetry.UpstreamClosed, "upstream_reset_before_response_started{connection_termination}",
			"upstream connect error or disconnect/reset before headers. reset reason: connection termination")
	}
	x.rec.Failure = err.Error()
	return x.answer(503, telemetry.UpstreamConnectFailure, "upstream_reset_before_response_started{internal}", "upstream failure")
}

// httpFromGRPC maps a gRPC code to the status that it stands for where endpoints are judged (Envoy
// Grpc::Utility::grpcToHttpStatus).
func httpFromGRPC(code int) int {
	switch code {
	case 1: // CANCELLED
		return 499
	case 3, 9, 11: // INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE
		return 400
	case 4: // DEADLINE_EXCEEDED
		return 504
	case 5: // NOT_FOUND
		return 404
	case 6, 10: // ALREADY_EXISTS, ABORTED
		return 409
	case 7: // PERMISSION_DENIED
		return 403
	case 8: // RESOURCE_EXHAUSTED
		return 429
	case 12: // UNIMPLEMENTED
		return 501
	case 14: // UNAVAILABLE
		return 503
	case 16: // UNAUTHENTICATED
		return 401
	case 0, telemetry.NoGRPC:
		return 200
	}
	return 500 // UNKNOWN, INTERNAL, DATA_LOSS, and what gRPC does not define
}

// sleep waits, and reports false as soon as the client is seen to have left.
func (x *exchange) sleep(d time.Duration) bool {
	for look := 50 * time.Millisecond; d > 0; look = min(2*look, firstLook) {
		part := min(d, look)
		time.Sleep(part)
		d -= part
		if x.gone() {
			return false
		}
	}
	return true
}

// grpcStatus reads a grpc-status field; telemetry.NoGRPC when there is none that is a code.
func grpcStatus(fs message.Fields) int {
	v, ok := fs.Get("grpc-status")
	if !ok || len(v) == 0 || len(v) > 2 {
		return telemetry.NoGRPC
	}
	n, err := strconv.Atoi(string(v))
	if err != nil || n < 0 {
		return telemetry.NoGRPC
	}
	return n
}
