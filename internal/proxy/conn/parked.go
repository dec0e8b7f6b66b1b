package conn

import (
	"net"
	"syscall"
	"time"
)

// Parked is an HTTP/1 connection between two requests that no goroutine serves.
type Parked struct {
	nc    net.Conn
	peer  *Peer
	h     Handler
	cfg   *Config
	drain *Drain
	parks bool // it may be parked
	stays bool // but not before its next request

	// Of the Lot, under its mutex.
	wake       func()
	place      int32
	inside     bool
	until      time.Time // it is closed
	next, prev *Parked
	member     *Member // of drain
	why        why
}

// why a connection leaves.
type why uint8

const (
	called   why = iota // there is something to read, or a drain began
	ending              // the peer sends no more, or the connection is broken
	timedOut            // it was idle for too long, or is in the way
)

// Serve goes on with the connection: it serves what comes until the connection is over, when it returns nil, or can be parked
// again.
func (p *Parked) Serve() *Parked {
	if p.member != nil {
		p.member.Leave()
		p.member = nil
	}
	if p.why == timedOut {
		_ = p.nc.Close()
		return nil
	}
	if tcp, ok := p.nc.(*net.TCPConn); ok {
		if p.why == ending && newPeeker(tcp).peek() == ended {
			_ = tcp.Close() // most end like this: without a request there is no need for anything
			return nil
		}
		s, err := NewSocket(tcp)
		if err != nil {
			_ = tcp.Close()
			return nil
		}
		p.nc = s
	}
	return p.serve(nil)
}

// Stay has the next wait be on the goroutine of Serve: no Lot took the connection in.
func (p *Parked) Stay() { p.stays = true }

// socket returns the socket under the connection.
func (p *Parked) socket() syscall.Conn {
	if tcp, ok := p.nc.(*net.TCPConn); ok {
		return tcp
	}
	if s, _ := socketOf(p.nc); s != nil {
		return s
	}
	return nil
}
