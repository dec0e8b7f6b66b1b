package stack

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// valueOf returns the value that a rule gives a header; one with variables that is empty changes nothing. Its parts come from
// messages, whose values were checked, from this proxy, and from the plan, in whose names any bytes may be.
func (x *exchange) valueOf(f *plan.Field) []byte {
	if f.Format == nil {
		return bytesOf(f.Value)
	}
	start := len(x.buf)
	for i := range f.Format.Parts {
		p := &f.Format.Parts[i]
		if p.Var == "" {
			x.buf = append(x.buf, p.Text...)
			continue
		}
		from := len(x.buf)
		x.appendVar(p)
		if n := from + int(p.Max); p.Max > 0 && len(x.buf) > n {
			x.buf = x.buf[:n]
		}
	}
	for i, c := range x.buf[start:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			x.buf[start+i] = '?'
		}
	}
	// A value neither begins nor ends with white space (RFC 9110 section 5.5), which an empty part may leave over.
	return bytes.Trim(x.buf[start:len(x.buf):len(x.buf)], " \t")
}

func (x *exchange) appendVar(p *plan.Part) {
	b := x.buf
	switch p.Var {
	case plan.VarRequest:
		n := len(b)
		if b = x.appendRequest(b, p.Name); len(b) == n && p.Else != "" {
			b = x.appendRequest(b, p.Else)
		}
	case plan.VarResponse:
		v, ok := x.resp.Fields.Get(p.Name)
		if !ok && p.Else != "" {
			v, _ = x.resp.Fields.Get(p.Else)
		}
		b = append(b, v...)
	case plan.VarProtocol:
		switch {
		case x.req.Major == 2:
			b = append(b, "HTTP/2"...)
		case x.req.Minor == 0:
			b = append(b, "HTTP/1.0"...)
		default:
			b = append(b, "HTTP/1.1"...)
		}
	case plan.VarStartTime:
		b = x.rec.Start.UTC().AppendFormat(b, p.Name)
	case plan.VarStartSeconds:
		b = strconv.AppendInt(b, x.rec.Start.Unix(), 10)
	case plan.VarHostname:
		b = append(b, x.s.Node.Name.Name...)
	case plan.VarRouteName:
		b = append(b, x.rec.Route.Name...)
	case plan.VarCluster:
		b = append(b, x.cluster.Plan().Name...)
	case plan.VarServerName:
		b = append(b, headerValue([]byte(x.p.SNI))...) // no message: any bytes may be in it
	case plan.VarPeer:
		if id := &x.p.Identity; x.p.TLS && !id.IsZero() {
			x.made("spiffe://", id.TrustDomain, "/ns/", id.Namespace, "/sa/", id.ServiceAccount)
		}
		return
	case plan.VarRemote:
		b = appendAddrPort(b, netip.AddrPortFrom(x.client, x.p.Remote.Port()))
	case plan.VarRemoteIP:
		b = appendAddr(b, x.client)
	case plan.VarRemotePort:
		b = strconv.AppendUint(b, uint64(x.p.Remote.Port()), 10)
	case plan.VarDirect:
		b = appendAddrPort(b, x.p.Remote)
	case plan.VarDirectIP:
		b = appendAddr(b, x.p.Remote.Addr())
	case plan.VarLocal:
		b = appendAddrPort(b, x.p.Local)
	case plan.VarLocalIP:
		b = appendAddr(b, x.p.Local.Addr())
	case plan.VarLocalPort:
		b = strconv.AppendUint(b, uint64(x.p.Local.Port()), 10)
	case plan.VarUpstream:
		switch e := x.rec.Endpoint; {
		case x.rec.UpstreamRemote.IsValid():
			b = x.rec.UpstreamRemote.AppendTo(b)
		case e != nil:
			b = append(b, e.Address...)
		}
	case plan.VarResponseCode:
		b = strconv.AppendInt(b, int64(x.resp.Status), 10)
	case plan.VarResponseFlags:
		if x.rec.Flags == 0 {
			b = append(b, '-')
		} else {
			b = x.rec.Flags.Append(b)
		}
	case plan.VarResponseDetail:
		b = append(b, x.rec.Detail...)
	}
	x.buf = b
}

// appendRequest appends a header of the request, or a part of its first line as it came (Envoy makes values before it rewrites).
func (x *exchange) appendRequest(b []byte, name string) []byte {
	switch name {
	case ":method":
		return append(b, x.rec.Method...)
	case ":scheme":
		return append(b, x.req.Scheme...)
	case ":authority":
		return append(b, x.rec.Authority...)
	case ":path":
		path := x.rec.Path
		if x.rec.Original != nil {
			path = x.rec.Original
		}
		if b = append(b, path...); x.rec.HasQuery {
			b = append(append(b, '?'), x.rec.Query...)
		}
		return b
	}
	v, _ := x.req.Fields.Get(name)
	return append(b, v...)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	return a.AppendTo(b)
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	return a.AppendTo(b)
}

// checkFormat refuses a value that could not be made.
func checkFormat(f *plan.Field, request bool) error {
	if len(f.Format.Parts) == 0 {
		return fmt.Errorf("header %s: its value has no parts", f.Name)
	}
	for i := range f.Format.Parts {
		p := &f.Format.Parts[i]
		switch {
		case p.Var == "" && !message.IsValue([]byte("-"+p.Text+"-")): // space at its ends is trimmed later
			return fmt.Errorf("header %s: %q can't be in a header value", f.Name, p.Text)
		case p.Var == "":
		case !p.Var.Known():
			return fmt.Errorf("header %s: unknown variable %q", f.Name, p.Var)
		case request && p.Var.OfResponses():
			return fmt.Errorf("header %s: variable %s is not known before there is a response", f.Name, p.Var)
		case (p.Var == plan.VarRequest || p.Var == plan.VarResponse || p.Var == plan.VarStartTime) && p.Name == "":
			return fmt.Errorf("header %s: variable %s without a name", f.Name, p.Var)
		}
	}
	return nil
}
