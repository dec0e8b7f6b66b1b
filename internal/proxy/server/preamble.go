package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// A PROXY protocol header tells who the client is, when a load balancer stands in front (HAProxy's proxy-protocol.txt). It is
// believed from everybody who can connect, which is why a listener has to be told to expect it.
const (
	preambleV1 = "PROXY "
	preambleV2 = "\r\n\r\n\x00\r\nQUIT\n"

	maxPreambleV1 = 107     // section 2.1, with CR LF
	maxPreambleV2 = 4 << 10 // far more than addresses take; the rest is for TLVs, which are skipped
)

var (
	errPreamble      = errors.New("the PROXY protocol header is malformed")
	errPreambleShort = errors.New("more bytes are needed")
)

// preamble is what a PROXY protocol header says. Without addresses the connection is the load balancer's own.
type preamble struct {
	source, destination netip.AddrPort
}

// parsePreamble reads a header at the start of b and returns its length.
func parsePreamble(b []byte) (preamble, int, error) {
	if n := min(len(b), len(preambleV2)); string(b[:n]) == preambleV2[:n] {
		if len(b) < len(preambleV2)+4 {
			return preamble{}, 0, errPreambleShort
		}
		return parseV2(b)
	}
	if n := min(len(b), len(preambleV1)); string(b[:n]) == preambleV1[:n] {
		end := bytes.Index(b[:min(len(b), maxPreambleV1)], []byte("\r\n"))
		switch {
		case end >= 0:
			p, err := parseV1(string(b[len(preambleV1):end]))
			return p, end + 2, err
		case len(b) < maxPreambleV1:
			return preamble{}, 0, errPreambleShort
		}
	}
	return preamble{}, 0, errPreamble
}

// parseV1 reads what stands between "PROXY " and CR LF.
func parseV1(line string) (preamble, error) {
	if line == "UNKNOWN" || strings.HasPrefix(line, "UNKNOWN ") {
		return preamble{}, nil
	}
	words := strings.Split(line, " ")
	if len(words) != 5 || words[0] != "TCP4" && words[0] != "TCP6" {
		return preamble{}, errPreamble
	}
	var at [2]netip.AddrPort
	for i := range at {
		addr, err := netip.ParseAddr(words[1+i])
		if err != nil || addr.Zone() != "" || addr.Is4() != (words[0] == "TCP4") {
			return preamble{}, errPreamble
		}
		port, err := strconv.ParseUint(words[3+i], 10, 16)
		if err != nil || strconv.FormatUint(port, 10) != words[3+i] {
			return preamble{}, errPreamble
		}
		at[i] = netip.AddrPortFrom(addr.Unmap(), uint16(port))
	}
	return preamble{source: at[0], destination: at[1]}, nil
}

func parseV2(b []byte) (preamble, int, error) {
	h := b[len(preambleV2):]
	command, family := h[0], h[1]
	size := int(binary.BigEndian.Uint16(h[2:]))
	n := len(preambleV2) + 4 + size
	if command>>4 != 2 || command&15 > 1 || n > maxPreambleV2 {
		return preamble{}, 0, errPreamble
	}
	if len(b) < n {
		return preamble{}, 0, errPreambleShort
	}
	h = h[4 : 4+size]
	if command&15 == 0 { // LOCAL: a health check of the load balancer
		return preamble{}, n, nil
	}
	var length int // of an address
	switch family {
	case 0x11: // TCP over IPv4
		length = 4
	case 0x21: // TCP over IPv6
		length = 16
	case 0x00: // unspecified
		return preamble{}, n, nil
	default: // UDP and Unix sockets are nothing that came here
		return preamble{}, 0, errPreamble
	}
	if size < 2*length+4 {
		return preamble{}, 0, errPreamble
	}
	source, _ := netip.AddrFromSlice(h[:length])
	destination, _ := netip.AddrFromSlice(h[length : 2*length])
	h = h[2*length:]
	return preamble{
		source:      netip.AddrPortFrom(source.Unmap(), binary.BigEndian.Uint16(h)),
		destination: netip.AddrPortFrom(destination.Unmap(), binary.BigEndian.Uint16(h[2:])),
	}, n, nil
}

// readPreamble takes the PROXY protocol header off a connection; the addresses in it become the peer's. A connection without
// a good one is closed: it did not come through the load balancer.
func (l *Listener) readPreamble(c *prefixConn, p *conn.Peer, r *Rules) bool {
	_ = c.SetReadDeadline(time.Now().Add(l.o.HandshakeTimeout))
	for {
		head, n, err := preamble{}, 0, errPreambleShort
		if len(c.prefix) > 0 {
			head, n, err = parsePreamble(c.prefix)
		}
		switch err {
		case nil:
			c.prefix = c.prefix[n:]
			if head.source.IsValid() {
				p.Remote, p.Local = head.source, head.destination
			}
			_ = c.SetReadDeadline(time.Time{})
			return true
		case errPreambleShort:
			silent := len(c.prefix) == 0
			if c.more() == nil {
				continue
			}
			if silent {
				return false // somebody looked whether the port is open
			}
		}
		l.o.Recorder.Proxy.ProtocolErrors.Inc()
		l.turnAway(p, r, &r.Listener.Origin, telemetry.DownstreamProtocolError, "proxy_protocol_malformed")
		return false
	}
}
