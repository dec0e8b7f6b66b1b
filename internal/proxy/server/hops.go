package server

import (
	"strconv"

	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// serve hands an exchange to the stack, unless it says that it shall go no further (RFC 9110 section 7.6.2).
func serve(s *stack.Stack, d stream.Downstream, p *conn.Peer) {
	r := d.Request()
	switch string(r.Method) {
	case "OPTIONS":
		if !hop(r) {
			s.Answer(d, p, 200, 0, "max_forwards", "")
			return
		}
	case "TRACE":
		if !hop(r) {
			// To show a request as it came would show what proxies added to it, and cookies to scripts (RFC 9110 section 9.3.8).
			s.Answer(d, p, 501, 0, "max_forwards", "this proxy, the last recipient by Max-Forwards, does not serve TRACE")
			return
		}
	}
	s.Serve(d, p)
}

// hop counts Max-Forwards down, and reports whether the request may go on. A value that is no number is nobody's business but
// the recipient's.
func hop(r *message.Request) bool {
	for i := range r.Fields {
		f := &r.Fields[i]
		if string(f.Name) != "max-forwards" {
			continue
		}
		n, err := strconv.ParseUint(string(f.Value), 10, 63)
		switch {
		case err != nil:
		case n == 0:
			return false
		default:
			f.Value = strconv.AppendUint(nil, n-1, 10)
		}
	}
	return true
}
