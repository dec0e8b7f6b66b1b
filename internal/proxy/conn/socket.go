package conn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Socket is a TCP connection whose reads and writes cost less than those of net.TCPConn:
//
//   - They are recv and send without blocking, entered without telling the scheduler: the kernel answers them at once,
//     so there is nothing that another thread could do meanwhile. read and write would also go through the file layer.
//   - A write that can be done at once sets no deadline. One that cannot, waits for at most the time given to limit.
//   - A write that a read will wait for anyway (hold) becomes one step with it: send, then sleep until the kernel says
//     that there is something to read. net.TCPConn would ask the kernel first, in vain.
//
// Like every net.Conn it may be used by several goroutines at once; hold and its kin are for one that owns both sides.
type Socket struct {
	*net.TCPConn
	raw syscall.RawConn

	rmu  sync.Mutex
	recv func(fd uintptr) bool
	in   []byte
	n    int
	rerr syscall.Errno
	held []byte // goes out with the next Read
	kept []byte // ours: what TLS wrote since holdWrites
	keep bool   // writes are held
	herr syscall.Errno
	once int          // bytes that were held, when they went out
	idle *idleBuffers // of a readIdle that is under way

	wmu   sync.Mutex
	send  func(fd uintptr) bool
	out   [3][]byte
	sent  int
	werr  syscall.Errno
	iov   [3]syscall.Iovec
	most  time.Duration // of waiting for the peer to read
	by    time.Time     // until when to wait for it at the latest; zero: no matter
	bound bool          // a write deadline of ours is set
}

// NewSocket returns nc as a Socket.
func NewSocket(nc *net.TCPConn) (*Socket, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Socket{TCPConn: nc, raw: raw}
	s.recv, s.send = s.recvSome, s.sendSome
	return s, nil
}

// socketOf returns the Socket under a connection, and whether nothing is between. It returns nil when there is none.
func socketOf(nc net.Conn) (s *Socket, plain bool) {
	if s, ok := nc.(*Socket); ok {
		return s, true
	}
	for {
		switch c := nc.(type) {
		case *Socket:
			return c, false
		case *tls.Conn:
			nc = c.NetConn()
		case interface{ Unwrap() net.Conn }:
			nc = c.Unwrap()
		default:
			return nil, false
		}
	}
}

// limit bounds how long writes wait for a peer that does not read; 0 is no bound. Who sets it leaves SetWriteDeadline
// alone.
func (s *Socket) limit(d time.Duration) { s.most = d }

// NetConn returns the connection beneath, so that the kernel can move bytes between sockets (splice).
func (s *Socket) NetConn() net.Conn { return s.TCPConn }

// hold keeps b until the next Read, which sends it first. b must stay as it is until then.
func (s *Socket) hold(b []byte) { s.held = b }

// holdWrites makes a hold of all that is written, by a layer between, until the next Read.
func (s *Socket) holdWrites() { s.keep, s.kept = true, s.kept[:0] }

// forget drops what is held, and reports whether everything that was held has gone out.
func (s *Socket) forget() bool {
	clean := len(s.held) == 0 && s.herr == 0
	s.held, s.keep, s.kept, s.herr, s.once = nil, false, nil, 0, 0
	return clean
}

// unacknowledged reports whether the peer's kernel has taken nothing of what was held. It costs a system call.
func (s *Socket) unacknowledged() bool {
	n := 0
	_ = s.raw.Control(func(fd uintptr) { n = sysWaiting(fd) }) // fails when it is closed: nothing is known then
	return n >= s.once
}

// sentWithin reports whether what was sent last was sent no longer than d ago. It costs a system call.
func (s *Socket) sentWithin(d time.Duration) bool {
	yes := false
	_ = s.raw.Control(func(fd uintptr) {
		ago, ok := sysSent(fd)
		yes = ok && ago <= d
	})
	return yes
}

// Read implements net.Conn.
func (s *Socket) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.rmu.Lock()
	s.in = b
	n, err := s.await()
	s.rmu.Unlock()
	return n, err
}

// await reads into in. Nothing else refers to that: what is given up during the wait must not be kept by the stack. Nor may
// the stack be deep, as it stays while the connection is idle (TestIdleConnectionsHoldSmallStacks).
func (s *Socket) await() (int, error) {
	err := s.raw.Read(s.recv)
	for err == nil && s.n == 0 && s.rerr == errHeld {
		// The send buffer had no room for all of what was held.
		rest := s.held
		s.held = nil
		switch _, err = s.write(rest, nil, nil); {
		case err == nil:
			err = s.raw.Read(s.recv)
		case isTimeout(err):
			err = errNotTaken // no end of the time for reading: the rest is lost
		}
	}
	s.in = nil
	switch {
	case err != nil:
		return 0, err
	case s.n > 0:
		return s.n, nil
	case s.rerr != 0:
		return 0, os.NewSyscallError("recv", s.rerr)
	}
	return 0, io.EOF
}

// errNotTaken is the error of a Read before which the peer did not take in time what was held.
var errNotTaken = errors.New("the peer does not read")

// errHeld is no error of the kernel's: it leaves the wait for reading because what was held has to be written first.
const errHeld = syscall.Errno(1 << 16)

// recvSome is called when the socket may be readable.
func (s *Socket) recvSome(fd uintptr) bool {
	if len(s.held) > 0 {
		s.keep, s.once = false, len(s.held)
		n, e := sendTo(fd, s.held)
		switch {
		case e == 0 && n == len(s.held):
			s.held = nil
			// The wait was prepared before this send, so the answer cannot slip by between.
			return false
		case e == 0 || e == syscall.EAGAIN:
			s.held = s.held[n:]
			s.n, s.rerr = 0, errHeld
			return true
		}
		// The connection is broken; still, an answer may be there to be read.
		s.held, s.herr = nil, e
	}
	for {
		if s.in == nil {
			s.in = s.idle.take()
		}
		n, e := sysRecv(fd, s.in)
		switch e {
		case 0:
			s.n, s.rerr = n, 0
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			if s.idle != nil {
				s.in = nil
				s.idle.give()
			}
			return false
		default:
			s.n, s.rerr = 0, e
			return true
		}
	}
}

// idleBuffers are what a connection can do without while it waits. take returns the room to read into, which it gets anew
// after give.
type idleBuffers struct {
	take func() []byte
	give func()
}

// readIdle is Read into the room that idle takes, and gives up while there is nothing to read.
func (s *Socket) readIdle(idle *idleBuffers) (int, error) {
	s.rmu.Lock()
	s.idle = idle
	n, err := s.await()
	s.idle = nil
	s.rmu.Unlock()
	return n, err
}

func sendTo(fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, e := sysSend(fd, b)
		switch e {
		case 0:
			return n, 0
		case syscall.EINTR:
		default:
			return 0, e
		}
	}
}

// Write implements net.Conn.
func (s *Socket) Write(b []byte) (int, error) {
	if s.keep {
		s.kept = append(s.kept, b...)
		s.held = s.kept
		return len(b), nil
	}
	return s.write(b, nil, nil)
}

// write sends pieces, in one system call if the kernel takes them all.
func (s *Socket) write(a, b, c []byte) (int, error) {
	if len(a)+len(b)+len(c) == 0 {
		return 0, nil
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.out = [3][]byte{a, b, c}
	s.sent, s.werr = 0, 0
	err := s.raw.Write(s.send)
	s.out = [3][]byte{}
	if s.bound {
		s.bound = false
		_ = s.SetWriteDeadline(time.Time{})
	}
	if err == nil && s.werr != 0 {
		err = os.NewSyscallError("send", s.werr)
	}
	return s.sent, err
}

// sendSome is called when the socket may be writable.
func (s *Socket) sendSome(fd uintptr) bool {
	for {
		n, e := s.sendOut(fd)
		switch e {
		case 0:
			s.sent += n
			if s.took(n) {
				return true
			}
		case syscall.EAGAIN:
			by := s.by
			if s.most > 0 {
				if most := time.Now().Add(s.most); by.IsZero() || most.Before(by) {
					by = most
				}
			}
			if !by.IsZero() {
				s.bound = true
				_ = s.SetWriteDeadline(by)
			}
			return false
		default:
			s.werr = e
			return true
		}
	}
}

// took removes the first n bytes of out, and reports whether nothing is left.
func (s *Socket) took(n int) bool {
	left := 0
	for i, b := range s.out {
		k := min(n, len(b))
		s.out[i] = b[k:]
		n -= k
		left += len(b) - k
	}
	return left == 0
}

func (s *Socket) sendOut(fd uintptr) (int, syscall.Errno) {
	pieces := 0
	var one []byte
	for _, b := range s.out {
		if len(b) == 0 {
			continue
		}
		one = b
		s.iov[pieces].Base = &b[0]
		s.iov[pieces].SetLen(len(b))
		pieces++
	}
	if pieces == 1 {
		s.iov = [3]syscall.Iovec{}
		return sendTo(fd, one)
	}
	defer func() { s.iov = [3]syscall.Iovec{} }()
	for {
		n, e := sysSendPieces(fd, s.iov[:pieces])
		switch e {
		case 0:
			return n, 0
		case syscall.EINTR:
		default:
			return 0, e
		}
	}
}
