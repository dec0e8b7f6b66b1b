package conn

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Sizes of pooled buffers: a head with a small body, and a piece of a large body.
const (
	smallBuffer = 4 << 10
	bodyBuffer  = 32 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	bodyBuffers  = sync.Pool{New: func() any { return new([bodyBuffer]byte) }}
	fieldRooms   = sync.Pool{New: func() any { return new(fieldRoom) }}
)

// fieldRoom is room for the field lines of a head.
type fieldRoom struct{ fields message.Fields }

// granule is how far deadlines are allowed to lag behind: they are moved when they would move by more than this, which
// saves a timer operation for nearly every message.
const granule = time.Second

// past is a deadline that has gone by.
var past = time.Unix(1, 0)

// peeker looks at a socket without reading from it.
type peeker struct {
	raw  syscall.RawConn
	look func(fd uintptr)
	n    int
	err  syscall.Errno
}

// newPeeker returns a peeker for the socket under nc, or one that knows nothing when there is none.
func newPeeker(nc net.Conn) *peeker {
	p := &peeker{}
	var raw syscall.RawConn
	if s, _ := socketOf(nc); s != nil {
		raw = s.raw
	} else if sc, ok := nc.(syscall.Conn); ok {
		var err error
		if raw, err = sc.SyscallConn(); err != nil {
			return p
		}
	} else {
		return p
	}
	p.raw = raw
	p.look = func(fd uintptr) { p.n, p.err = sysPeek(fd) }
	return p
}

// peeked is what a peeker saw.
type peeked uint8

const (
	nothing peeked = iota // open and silent
	bytes1                // something to read
	ended                 // closed or broken
)

// peek is called by one goroutine at a time.
func (p *peeker) peek() peeked {
	if p.raw == nil {
		return nothing
	}
	if err := p.raw.Control(p.look); err != nil {
		return ended
	}
	switch {
	case p.err == syscall.EAGAIN || p.err == syscall.EINTR:
		return nothing
	case p.err != 0 || p.n == 0:
		return ended
	}
	return bytes1
}

// hungUp reports whether the peer has ended its side, also when there is something to read before that: the last that a
// TLS peer sends is an alert.
func (p *peeker) hungUp() bool {
	if p.raw == nil {
		return false
	}
	gone := false
	err := p.raw.Control(func(fd uintptr) { gone = sysHungUp(fd) })
	return gone || err != nil
}

// vector writes pieces in one system call where the connection can.
type vector struct {
	store [3][]byte
	bufs  net.Buffers
}

func (v *vector) write(nc net.Conn, a, b, c []byte) error {
	if s, ok := nc.(*Socket); ok {
		_, err := s.write(a, b, c)
		return err
	}
	v.store = [3][]byte{a, b, c}
	v.bufs = net.Buffers(v.store[:])
	if len(c) == 0 {
		v.bufs = v.bufs[:2]
	}
	_, err := v.bufs.WriteTo(nc)
	v.store = [3][]byte{}
	return err
}

// closeWrite half-closes a connection that can be.
func closeWrite(nc net.Conn) error {
	if h, ok := nc.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// lingerClose closes a connection on which the peer may still be sending: closing with unread bytes makes the kernel
// send a reset, which can destroy the response before the client has read it (RFC 9112 section 9.6).
func lingerClose(nc net.Conn) {
	if closeWrite(nc) == nil {
		_ = nc.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		b := bodyBuffers.Get().(*[bodyBuffer]byte)
		for total := 0; total < 1<<20; {
			n, err := nc.Read(b[:])
			if total += n; err != nil {
				break
			}
		}
		bodyBuffers.Put(b)
	}
	_ = nc.Close()
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// readError turns an error of a socket into one of package stream.
func readError(err error) error {
	if isTimeout(err) {
		return stream.ErrDeadline
	}
	return stream.ErrReset
}
