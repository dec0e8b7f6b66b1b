package stack

import (
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// originHeader tells a caller inside the mesh which rule made an answer, and why.
const originHeader = "x-malha-origin"

// unsentHeader tells the proxy of a caller that its request did not reach the workload's program, so that it can go to another
// replica, whatever it is: nobody has acted on it.
const unsentHeader = "x-malha-unsent"

var one = []byte("1")

// inside reports whether the caller may know: this workload's own application, or a peer that proved to be of the mesh.
// A stranger at an edge never is, whatever certificate it shows.
func (x *exchange) inside() bool {
	return !x.s.edge && (!x.s.inbound || x.rec.MTLS)
}

// keepsOrigin reports whether a response brings what the proxy of the destination said about it. Only a proxy that proved
// to be one is believed, and only this workload's application is told: an edge and an inbound listener take it away.
func (x *exchange) keepsOrigin() bool {
	return !x.s.edge && !x.s.inbound && x.fromMesh()
}

// fromMesh reports whether the response is that of a proxy of the mesh, which proved to be one.
func (x *exchange) fromMesh() bool {
	return x.lease != nil && x.lease.TLS && x.rec.Endpoint != nil && !x.rec.Endpoint.Identity.IsZero()
}

// wasUnsent reports whether the proxy of the destination says that its program got nothing of the request.
func (x *exchange) wasUnsent() bool {
	if !x.fromMesh() {
		return false
	}
	_, said := x.resp.Fields.Get(unsentHeader)
	return said
}

// tellOrigin writes "VirtualService/bookinfo/reviews http[0] (reviews.yaml:12) route_not_found".
func (x *exchange) tellOrigin(fs *message.Fields) {
	if !x.inside() {
		return
	}
	const absent = telemetry.UpstreamConnectFailure | telemetry.NoHealthyUpstream | telemetry.UpstreamClosed | telemetry.UpstreamReset
	if x.s.inbound && !x.sent && x.rec.Flags&absent != 0 {
		fs.Add(unsentHeader, one)
	}
	start := len(x.buf)
	if o := x.rec.Origin; o != nil && !o.IsZero() {
		x.buf = append(appendOrigin(x.buf, o), ' ')
	} else {
		x.buf = append(x.buf, "listener "...)
		x.buf = append(x.buf, x.s.Listener.Name...)
		x.buf = append(x.buf, ' ')
	}
	x.buf = append(x.buf, x.rec.Detail...)
	fs.Add(originHeader, headerValue(x.buf[start:len(x.buf):len(x.buf)]))
}

// appendOrigin spells an origin. Of the file it has the name alone: where it lies is the business of who wrote it.
func appendOrigin(b []byte, o *ident.Origin) []byte {
	short := *o
	short.File = o.File[strings.LastIndexByte(o.File, '/')+1:]
	return short.Append(b)
}
