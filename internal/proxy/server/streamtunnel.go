package server

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// overStream makes a connection of a stream that was hijacked (RFC 9113 section 8.5): one HTTP/2 connection carries many
// tunnels. It is one end of a pair of sockets, so that a tunnel is served as any connection is, deadlines and half-close included. The
// caller calls ended when it has served the tunnel, closed or not: what was said last reaches the client still, and then the stream is
// not used any more.
func (l *Listener) overStream(d stream.Downstream) (inner net.Conn, ended func(), err error) {
	w, ok := d.(stream.Watched)
	if !ok {
		return nil, nil, fmt.Errorf("this connection carries no tunnels")
	}
	inner, outer, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	var both sync.WaitGroup
	var served atomic.Bool
	spawn := func(f func()) {
		both.Go(func() {
			defer func() {
				if l.caught("tunnel", recover()) {
					_ = outer.Close()
				}
			}()
			f()
		})
	}
	spawn(func() {
		for {
			p, err := d.ReadBody()
			if _, broken := outer.Write(p); broken != nil {
				return
			}
			switch {
			case err == nil:
			case err == io.EOF:
				_ = outer.CloseWrite()
				return
			case served.Load():
				return
			default:
				_ = outer.Close() // the client has left, and reads no more either
				return
			}
		}
	})
	spawn(func() {
		b := make([]byte, 16<<10)
		for {
			n, err := outer.Read(b)
			if n > 0 && (d.WriteBody(b[:n], false) != nil || d.Flush() != nil) {
				_ = outer.Close()
				return
			}
			switch {
			case err == io.EOF:
				if d.WriteBody(nil, true) == nil {
					_ = d.Flush()
				}
				return
			case err != nil:
				d.Reset(stream.Cancelled)
				return
			}
		}
	})
	return inner, func() {
		_ = inner.Close()
		served.Store(true)
		w.StopReading() // nobody reads what the client may still send
		both.Wait()
		_ = outer.Close()
	}, nil
}

func socketPair() (a, b *net.UnixConn, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	for _, fd := range fds {
		if err == nil {
			syscall.CloseOnExec(fd)
		}
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "tunnel")
		nc, ferr := net.FileConn(f)
		_ = f.Close()
		if ferr != nil {
			err = ferr
			continue
		}
		ends[i] = nc.(*net.UnixConn) // of AF_UNIX
	}
	if err != nil {
		for _, e := range ends {
			if e != nil {
				_ = e.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}
