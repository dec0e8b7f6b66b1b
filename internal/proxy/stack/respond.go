package stack

import (
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

var (
	nameContentType = []byte("content-type")
	plainText       = []byte("text/plain")
	nameDate        = []byte("date")
)

// respond passes the response on, body and trailers as they come.
func (x *exchange) respond() {
	resp := &x.resp
	x.rec.Status = resp.Status
	x.rec.Detail = "via_upstream"
	if x.grpc {
		x.rec.GRPCStatus = grpcStatus(resp.Fields)
	} else { // what a call of gRPC comes to is told at its end
		x.lease.Answered(resp.Status)
	}
	x.responseHeaders()
	if resp.Status == 101 {
		x.tunnel()
		return
	}
	if len(x.req.Upgrade) > 0 && x.req.Major == 2 && resp.Status/100 == 2 {
		// To an HTTP/2 client any 2xx would say that the tunnel is open (RFC 8441 section 5), but the endpoint has not
		// switched (CVE-2024-23326).
		x.finish(nil)
		x.answer(502, telemetry.UpstreamProtocolError, "upgrade_refused", "the endpoint did not switch protocols")
		return
	}
	end := !resp.HasBody || resp.Length == 0
	x.responded = true
	if err := x.d.WriteHead(resp, end); err != nil {
		x.downstreamFailed()
		return
	}
	x.whole = true
	if end {
		x.complete()
		return
	}
	ready, _ := x.lease.Upstream.(stream.Ready)
	look := firstLook
	for {
		if ready == nil || !ready.BodyReady() {
			x.whole = false
			if err := x.d.Flush(); err != nil {
				x.downstreamFailed()
				return
			}
			x.now()
			x.boundRead(x.deadline, look)
		}
		p, err := x.lease.ReadBody()
		x.rec.BodyOut += uint64(len(p))
		if x.grpc {
			x.out.pass(p)
		}
		switch {
		case err == nil:
			look = firstLook
			if x.idle > 0 {
				x.now()
				x.moved = x.at
			}
			if err := x.d.WriteBody(p, false); err != nil {
				x.downstreamFailed()
				return
			}
		case err == io.EOF:
			if x.lastBody(p) != nil {
				x.downstreamFailed()
				return
			}
			x.complete()
			return
		case errors.Is(err, stream.ErrDeadline):
			x.now()
			if !x.deadline.IsZero() && !x.at.Before(x.deadline) {
				x.cut(err, telemetry.UpstreamTimeout, "response_timeout")
				return
			}
			if x.stood() {
				x.cut(err, telemetry.StreamIdle, "stream_idle_timeout")
				return
			}
			if look = x.lookAfterClient(look); look == 0 {
				x.downstreamFailed()
				return
			}
		case errors.Is(err, stream.ErrCancelled) && x.gone():
			x.downstreamFailed()
			return
		default:
			flag := telemetry.UpstreamClosed
			if errors.Is(err, stream.ErrStreamReset) {
				flag = telemetry.UpstreamReset
			}
			x.cut(err, flag, "upstream_reset_after_response_started")
			return
		}
	}
}

// lastBody writes the end of the response.
func (x *exchange) lastBody(p []byte) error {
	t := x.lease.Trailers()
	if len(t) == 0 {
		return x.d.WriteBody(p, true)
	}
	if x.grpc {
		x.rec.GRPCStatus = grpcStatus(t)
	}
	if len(p) > 0 {
		if err := x.d.WriteBody(p, false); err != nil {
			return err
		}
	}
	return x.d.WriteTrailers(t)
}

// responseHeaders changes the response head on its way.
func (x *exchange) responseHeaders() {
	fs := &x.resp.Fields
	s := *fs
	n := 0
	for i := range s {
		name := s[i].Name
		if len(name) > 8 && name[0] == 'x' && (hasPrefix(name, "x-malha-") || string(name) == "x-envoy-upstream-service-time") &&
			!(string(name) == originHeader && x.keepsOrigin()) {
			continue
		}
		s[n] = s[i]
		n++
	}
	*fs = s[:n]
	if x.route != nil {
		x.apply(fs, &x.ops.Response)
		x.apply(fs, &x.rec.Route.Headers.Response)
		x.shareResponse(fs)
	}
	x.giveCookie(fs)
	x.giveSession(fs)
	start := len(x.buf)
	x.buf = strconv.AppendInt(x.buf, x.rec.ServiceTime.Milliseconds(), 10)
	*fs = append(*fs, message.Field{Name: nameServiceTime, Value: x.buf[start:len(x.buf):len(x.buf)]})
	x.explainTo(fs)
}

// explainTo says where the answer came from, and why, to an application that asked (x-malha-explain: 1).
func (x *exchange) explainTo(fs *message.Fields) {
	if !x.explain {
		return
	}
	if x.rec.Origin != nil {
		fs.Add("x-malha-route", headerValue(x.made(x.rec.Origin.String())))
	}
	if x.cluster != nil {
		fs.Add("x-malha-cluster", headerValue(x.made(x.cluster.Plan().Name)))
	}
	if e := x.rec.Endpoint; e != nil {
		name := e.Workload.Workload
		if name == "" {
			name = "unknown"
		}
		if e.Workload.Namespace != "" {
			name = e.Workload.Namespace + "/" + name
		}
		fs.Add("x-malha-endpoint", headerValue(x.made(name, " ", e.Address)))
	}
	if x.rec.Flags != 0 {
		fs.Add("x-malha-flags", x.made(x.rec.Flags.String()))
	}
	if x.rec.Detail != "" {
		fs.Add("x-malha-detail", headerValue(x.made(x.rec.Detail)))
	}
}

// headerValue replaces, in place, bytes that no header value may have.
func headerValue(b []byte) []byte {
	for i, c := range b {
		if c < ' ' || c >= 0x7f {
			b[i] = '?'
		}
	}
	return b
}

// complete ends an exchange that went well.
func (x *exchange) complete() {
	// The lease first: what is written downstream waits in a buffer, and the endpoint's connection is free sooner.
	x.settleBody()
	x.finish(nil)
	x.stopBody()
}

// settleTime is how long the last piece of a request body may take to go out when the answer is complete.
const settleTime = 100 * time.Millisecond

// settleBody lets a pump that is at its end come to it, so that an upstream connection which carried a complete exchange
// is seen to be reusable. An endpoint that does not read the last piece any more is not waited for.
func (x *exchange) settleBody() {
	b := &x.body
	if !b.pumping || !b.ended.Load() {
		return
	}
	if b.mu.TryLock() { // nothing is being written
		b.mu.Unlock()
		b.done.Wait()
		return
	}
	l, cancelled := x.lease, make(chan struct{})
	late := time.AfterFunc(settleTime, func() {
		l.Cancel(stream.Cancelled)
		close(cancelled)
	})
	b.done.Wait()
	if !late.Stop() {
		<-cancelled // the lease is about to be somebody else's
	}
}

// cut ends a response that has begun and cannot be completed.
func (x *exchange) cut(err error, flag telemetry.Flags, detail string) {
	x.rec.Flags |= flag
	x.rec.Detail = detail
	_ = x.d.Flush()
	x.finish(err)
	x.d.Reset(stream.Internal)
	x.stopBody()
}

// downstreamFailed ends an exchange whose client does not take the response.
func (x *exchange) downstreamFailed() {
	x.rec.Flags |= telemetry.DownstreamClosed
	x.rec.Detail = "downstream_remote_disconnect"
	x.unnotify()
	x.lease.Cancel(stream.Cancelled)
	x.finish(stream.ErrCancelled)
	x.d.Reset(stream.Cancelled)
	x.stopBody()
}

// answer is the one place where this proxy answers for itself. It returns false, for the layers' sake.
func (x *exchange) answer(status int, flags telemetry.Flags, detail, text string) bool {
	x.rec.Flags |= flags
	if x.grpc {
		return x.answerGRPC(grpcFromHTTP(status), 0, detail, text)
	}
	x.resp.Reset()
	x.resp.Status = status
	x.resp.Fields = append(x.resp.Fields, message.Field{Name: nameContentType, Value: plainText})
	if flags&telemetry.UpstreamOverflow != 0 {
		x.resp.Fields.Add(string(nameOverloaded), []byte("true"))
	}
	return x.local(detail, bytesOf(text))
}

// local writes a response of our own, whose status and fields are set.
func (x *exchange) local(detail string, body []byte) bool {
	x.stopBody()
	x.rec.Detail = detail
	x.rec.Status = x.resp.Status
	if x.rec.Origin == nil { // before any rule was found
		x.rec.Origin = &x.s.Listener.Origin
	}
	x.shareResponse(&x.resp.Fields)
	x.tellLimit(&x.resp.Fields)
	x.tellOrigin(&x.resp.Fields)
	x.explainTo(&x.resp.Fields)
	start := len(x.buf)
	x.buf = message.AppendDate(x.buf, time.Now())
	x.resp.Fields = append(x.resp.Fields, message.Field{Name: nameDate, Value: x.buf[start:len(x.buf):len(x.buf)]})
	allowed := x.resp.Status >= 200 && x.resp.Status != 204 && x.resp.Status != 304
	if !allowed {
		body = nil
	}
	x.resp.Length = int64(len(body))
	x.resp.HasBody = len(body) > 0 && string(x.req.Method) != "HEAD"
	x.responded = true
	if err := x.d.WriteHead(&x.resp, !x.resp.HasBody); err != nil {
		x.rec.Flags |= telemetry.DownstreamClosed
		return false
	}
	if x.resp.HasBody {
		if err := x.d.WriteBody(body, true); err != nil {
			x.rec.Flags |= telemetry.DownstreamClosed
			return false
		}
		x.rec.BodyOut = uint64(len(body))
	}
	return false
}

// answerGRPC answers with trailers alone: a response head that has the status ("PROTOCOL-HTTP2", Responses).
func (x *exchange) answerGRPC(code int, flags telemetry.Flags, detail, text string) bool {
	x.rec.Flags |= flags
	x.rec.GRPCStatus = code
	x.resp.Reset()
	x.resp.Status = 200
	x.resp.Fields.Add("content-type", grpcType)
	start := len(x.buf)
	x.buf = strconv.AppendInt(x.buf, int64(code), 10)
	x.resp.Fields.Add("grpc-status", x.buf[start:len(x.buf):len(x.buf)])
	x.resp.Fields.Add("grpc-message", percentEncode(x.made(text)))
	return x.local(detail, nil)
}

// percentEncode is the encoding of grpc-message: printable ASCII but '%' stays.
func percentEncode(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c < ' ' || c > '~' || c == '%' {
			out = append(out, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
			continue
		}
		out = append(out, c)
	}
	return out
}

// grpcFromHTTP maps a status to a gRPC code ("HTTP to gRPC Status Code Mapping", grpc/doc/http-grpc-status-mapping.md).
func grpcFromHTTP(status int) int {
	switch status {
	case 400:
		return 13 // INTERNAL
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 404:
		return 12 // UNIMPLEMENTED
	case 408, 504: // our own timeouts: the mapping's UNAVAILABLE for 504 would be retried
		return 4 // DEADLINE_EXCEEDED
	case 429, 502, 503:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

// DialFlags returns the response flags for an error of upstream's Acquire and Dial.
func DialFlags(err error) telemetry.Flags {
	switch {
	case errors.Is(err, upstream.ErrNoHealthy):
		return telemetry.NoHealthyUpstream
	case errors.Is(err, upstream.ErrOverflow):
		return telemetry.UpstreamOverflow
	case errors.Is(err, stream.ErrDeadline):
		return telemetry.UpstreamTimeout
	case errors.Is(err, upstream.ErrClosed):
		return telemetry.UpstreamClosed // this proxy shuts down
	case errors.Is(err, route.ErrOutside):
		return telemetry.NoRoute
	}
	return telemetry.UpstreamConnectFailure
}
