package stack

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// Header names that proxies write. They are shared and never written to.
var (
	nameRequestID    = []byte("x-request-id")
	nameClientCert   = []byte("x-forwarded-client-cert")
	nameForwardedFor = []byte("x-forwarded-for")
	nameProto        = []byte("x-forwarded-proto")
	nameOriginalPath = []byte("x-envoy-original-path")
	nameServiceTime  = []byte("x-envoy-upstream-service-time")
	nameOverloaded   = []byte("x-envoy-overloaded")
)

// afford turns requests away while there is no memory for more of them: those that are under way need what is left.
func (x *exchange) afford() bool {
	return !x.s.Memory.Short() || x.answer(503, telemetry.Overloaded, "overload", "this proxy is short of memory")
}

// sanitize removes what only a proxy may say and writes what this proxy says.
//
// x-forwarded-client-cert is never taken from a peer: it is an identity, and the connection knows better
// (CVE-2024-45806 and its kin). At the edge, where strangers come in, all forwarded and internal headers go. Neither is taken in
// a spelling that programs may read as the same name (message.Means).
func (x *exchange) sanitize() bool {
	if len(x.req.Upgrade) > 0 && x.req.Major == 2 {
		x.fromExtendedConnect()
	}
	fs := x.req.Fields
	n := 0
	for i := range fs {
		name := fs[i].Name
		if len(name) > 2 && name[0] == 'x' && (name[1] == '-' || name[1] == '_') && !x.keepsHeader(name, fs[i].Value) {
			continue
		}
		if name[0] == 'l' && (string(name) == "l5d-client-id" || message.Means(name, "l5d-client-id")) {
			continue // Linkerd's x-forwarded-client-cert: programs that came from there believe it
		}
		if string(name) == "user-agent" {
			x.rec.UserAgent = fs[i].Value
		}
		fs[n] = fs[i]
		n++
	}
	x.req.Fields = fs[:n]

	if x.rec.RequestID == nil {
		x.rec.RequestID = x.newRequestID()
		x.add(nameRequestID, x.rec.RequestID)
	}
	if x.s.edge {
		x.forwarded()
	}
	if x.s.inbound && x.p.TLS && !x.p.Identity.IsZero() {
		x.add(nameClientCert, x.made("By=", x.s.identity, ";URI=spiffe://", x.p.Identity.TrustDomain, "/ns/", x.p.Identity.Namespace,
			"/sa/", x.p.Identity.ServiceAccount))
	}
	return true
}

// forwarded writes whom the request comes from, as an edge knows it: its connection, and what the trusted proxies in front of
// it say. With n of those the n-th address from the right is the client's, since each of them wrote down whom it saw (Envoy
// xff_num_trusted_hops); what stands left of it is passed on and not believed.
func (x *exchange) forwarded() {
	start := len(x.buf)
	if hops := x.s.Listener.TrustedHops; hops > 0 {
		for i := range x.req.Fields {
			if f := &x.req.Fields[i]; string(f.Name) == "x-forwarded-for" && len(f.Value) > 0 {
				if len(x.buf) > start {
					x.buf = append(x.buf, ", "...)
				}
				x.buf = append(x.buf, f.Value...)
			}
		}
		x.req.Fields.Del("x-forwarded-for")
		if a, ok := fromRight(x.buf[start:], int(hops)); ok {
			x.client = a
		}
		if len(x.buf) > start {
			x.buf = append(x.buf, ", "...)
		}
	}
	x.buf = x.p.Remote.Addr().AppendTo(x.buf)
	x.rec.ForwardedFor = x.buf[start:len(x.buf):len(x.buf)]
	x.add(nameForwardedFor, x.rec.ForwardedFor)
	if _, ok := x.req.Fields.Get("x-forwarded-proto"); !ok {
		x.add(nameProto, x.req.Scheme)
	}
}

// fromRight returns the n-th address from the right of a list, if there are as many and it is one.
func fromRight(list []byte, n int) (netip.Addr, bool) {
	for ; len(list) > 0 && n > 0; n-- {
		i := bytes.LastIndexByte(list, ',')
		if n == 1 {
			a, err := netip.ParseAddr(string(bytes.TrimSpace(list[i+1:])))
			return a, err == nil
		}
		list = list[:max(i, 0)]
	}
	return netip.Addr{}, false
}

// keepsHeader looks at a header that begins with "x-".
func (x *exchange) keepsHeader(name, value []byte) bool {
	switch string(name) {
	case "x-request-id":
		if x.rec.RequestID != nil {
			return false
		}
		x.rec.RequestID = value
		return true
	case "x-forwarded-for":
		if x.s.edge {
			return x.s.Listener.TrustedHops > 0
		}
		x.rec.ForwardedFor = value
		return true
	case "x-forwarded-proto":
		// Of an edge's clients only a trusted proxy may say how it was asked.
		return !x.s.edge || x.s.Listener.TrustedHops > 0 && (string(value) == "http" || string(value) == "https")
	case "x-malha-explain":
		// Only this workload's own application is told where its requests go.
		x.explain = x.explain || !x.s.inbound && !x.s.edge && string(value) == "1"
		return false
	case "x-forwarded-client-cert":
		return false
	case "x-envoy-upstream-rq-timeout-ms":
		// Its own application's request for a time other than the rule's (Istio's task "Request Timeouts"); nobody else may ask.
		if x.s.inbound || x.s.edge {
			return x.s.inbound
		}
		if ms, ok := wholeMillis(value); ok {
			x.within = ms
		}
		return false
	}
	switch {
	case hasPrefix(name, "x-malha-"), message.Means(name, "x-malha-"), message.Means(name, "x-forwarded-client-cert"):
		return false
	case x.s.edge:
		return !hasPrefix(name, "x-envoy-") && !hasPrefix(name, "x-forwarded-") && !message.Means(name, "x-envoy-") && !message.Means(name, "x-forwarded-")
	}
	return true
}

func hasPrefix(b []byte, p string) bool { return len(b) >= len(p) && string(b[:len(p)]) == p }

func (x *exchange) add(name, value []byte) {
	x.req.Fields = append(x.req.Fields, message.Field{Name: name, Value: value})
}

// newRequestID returns a random UUID (RFC 9562 version 4), as Envoy makes them.
func (x *exchange) newRequestID() []byte {
	var id [16]byte
	a, b := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		id[i], id[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	start := len(x.buf)
	buf := hex.AppendEncode(x.buf, id[:4])
	for _, part := range [...][2]int{{4, 6}, {6, 8}, {8, 10}, {10, 16}} {
		buf = append(buf, '-')
		buf = hex.AppendEncode(buf, id[part[0]:part[1]])
	}
	x.buf = buf
	return buf[start:len(buf):len(buf)]
}

// authorize asks the policies that guard the listener.
func (x *exchange) authorize() bool {
	if x.s.Authz == nil {
		return true
	}
	in := authz.Input{Peer: x.p.Identity, Remote: x.p.Remote.Addr(), Local: x.p.Local.Addr(), Port: x.s.Listener.Port, Request: x.req}
	if in.Port == 0 && x.s.inbound {
		in.Port = int(x.p.Local.Port()) // a listener for all ports of the workload
	}
	d := x.s.Authz.Check(&in)
	if d.Shadow != nil && !d.Shadow.Allow {
		x.s.Recorder.Proxy.ShadowDenied.Inc()
	}
	if d.Allow {
		return true
	}
	x.rec.Origin = d.Origin
	x.charge()
	detail := d.Detail
	if detail == "" {
		detail = authz.DetailNone
	}
	return x.answer(403, telemetry.Unauthorized, detail, "RBAC: access denied")
}

// isFieldName reports whether a rule may speak of a header of this name.
func isFieldName(s string) bool {
	return message.IsLowerToken([]byte(s)) && !strings.HasPrefix(s, ":")
}
