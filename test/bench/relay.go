package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A relay passes on what a read brings without looking at it: a request of one piece to a connection of its pool, and the answer of
// one piece back. It is no proxy. What it costs is what HTTP/1.1 costs the kernel, and Go's way of waiting for sockets; a proxy
// can't be cheaper. There are two: one that waits as malha-proxy does, with a goroutine for each connection, and one with an event
// loop of its own, as nginx and HAProxy have it, to see what that would be worth.
//
//	bench relay goroutines|loop LISTEN BACKEND
func relay(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: bench relay goroutines|loop LISTEN BACKEND")
	}
	ln, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	go func() {
		<-interrupted
		_ = ln.Close()
	}()
	serve := relayByGoroutines
	if args[0] == "loop" {
		serve = relayByLoop
	}
	if err := serve(ln.(*net.TCPListener), args[2]); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

const relayRoom = 8 << 10 // for a request or an answer

// rawSocket is a connection with what system calls need.
type rawSocket struct {
	*net.TCPConn
	raw syscall.RawConn
}

func newRawSocket(c *net.TCPConn) (*rawSocket, error) {
	raw, err := c.SyscallConn()
	return &rawSocket{c, raw}, err
}

func dialRaw(backend string) (*rawSocket, error) {
	c, err := net.Dial("tcp", backend)
	if err != nil {
		return nil, err
	}
	return newRawSocket(c.(*net.TCPConn))
}

// recvNow and sendNow are entered without telling the scheduler, as those of malha-proxy are: they never block.
func recvNow(fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// sendNow sends all of b, which always fits: a connection has one message at a time.
func sendNow(fd int, b []byte) error {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	switch {
	case e != 0:
		return e
	case int(n) < len(b):
		return io.ErrShortWrite
	}
	return nil
}

// relayByGoroutines waits as conn.Socket does: the request is sent from inside of the wait for the answer, and who was answered lets
// others run before it asks the kernel for its next request.
func relayByGoroutines(ln *net.TCPListener, backend string) error {
	var mu sync.Mutex
	var pool []*rawSocket
	take := func() (*rawSocket, error) {
		mu.Lock()
		defer mu.Unlock()
		if n := len(pool); n > 0 {
			s := pool[n-1]
			pool = pool[:n-1]
			return s, nil
		}
		return dialRaw(backend)
	}
	give := func(s *rawSocket) {
		mu.Lock()
		pool = append(pool, s)
		mu.Unlock()
	}
	serve := func(client *rawSocket) {
		defer func() { _ = client.Close() }()
		room := make([]byte, relayRoom)
		var n int
		var failed error
		var sent bool
		receive := func(fd uintptr) bool {
			n, failed = recvNow(int(fd), room)
			return !errors.Is(failed, unix.EAGAIN)
		}
		exchange := func(fd uintptr) bool {
			if sent {
				return receive(fd)
			}
			sent = true
			failed = sendNow(int(fd), room[:n])
			return failed != nil
		}
		answer := func(fd uintptr) bool {
			failed = sendNow(int(fd), room[:n])
			return true
		}
		for {
			if err := client.raw.Read(receive); err != nil || failed != nil || n == 0 {
				return
			}
			up, err := take()
			if err != nil {
				return
			}
			sent = false
			if err := up.raw.Read(exchange); err != nil || failed != nil || n == 0 {
				_ = up.Close()
				return
			}
			give(up)
			if err := client.raw.Write(answer); err != nil || failed != nil {
				return
			}
			runtime.Gosched()
		}
	}
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return err
		}
		client, err := newRawSocket(c)
		if err != nil {
			return err
		}
		go serve(client)
	}
}

// loop is an epoll set and who waits for which descriptor.
type loop struct {
	set     int
	backend string
	mu      sync.Mutex // of what is accepted
	ready   map[int]func() error
	idle    []*loopSocket
	room    [relayRoom]byte
}

// loopSocket is a connection of a loop: a client's, or one to the backend, of which client is who waits for the answer.
type loopSocket struct {
	fd     int
	client *loopSocket
}

func relayByLoop(ln *net.TCPListener, backend string) error {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	l := &loop{set: set, backend: backend, ready: map[int]func() error{}}
	go func() {
		fmt.Fprintln(os.Stderr, "bench: relay:", l.run())
		os.Exit(1)
	}()
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return err
		}
		s := &loopSocket{}
		if err := l.add(c, s, func() error { return l.request(s) }); err != nil {
			return err
		}
	}
}

// add takes a connection from Go's poller and waits for it in the loop's set.
func (l *loop) add(c *net.TCPConn, s *loopSocket, ready func() error) error {
	f, err := c.File() // a descriptor of its own
	if err != nil {
		return err
	}
	defer func() { _, _ = f.Close(), c.Close() }()
	if s.fd, err = unix.Dup(int(f.Fd())); err != nil {
		return err
	}
	l.mu.Lock()
	l.ready[s.fd] = ready
	l.mu.Unlock()
	return unix.EpollCtl(l.set, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(s.fd)})
}

// run returns only when it can't go on.
func (l *loop) run() error {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(l.set, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for _, e := range events[:max(n, 0)] {
			l.mu.Lock()
			ready := l.ready[int(e.Fd)]
			l.mu.Unlock()
			if ready == nil {
				continue
			}
			if err := ready(); err != nil {
				return err
			}
		}
	}
}

// request passes on what a client sent.
func (l *loop) request(client *loopSocket) error {
	n, err := recvNow(client.fd, l.room[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err != nil || n == 0:
		return l.close(client)
	}
	up, err := l.take()
	if err != nil {
		return err
	}
	up.client = client
	return sendNow(up.fd, l.room[:n])
}

// answer passes on what the backend sent.
func (l *loop) answer(up *loopSocket) error {
	client := up.client
	n, err := recvNow(up.fd, l.room[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err != nil || n == 0 || client == nil:
		return errors.New("the backend closed a connection")
	}
	up.client = nil
	l.idle = append(l.idle, up)
	if client.fd < 0 { // it left
		return nil
	}
	if err := sendNow(client.fd, l.room[:n]); err != nil {
		return l.close(client)
	}
	return nil
}

func (l *loop) take() (*loopSocket, error) {
	if n := len(l.idle); n > 0 {
		up := l.idle[n-1]
		l.idle = l.idle[:n-1]
		return up, nil
	}
	c, err := net.Dial("tcp", l.backend)
	if err != nil {
		return nil, err
	}
	up := &loopSocket{}
	return up, l.add(c.(*net.TCPConn), up, func() error { return l.answer(up) })
}

func (l *loop) close(s *loopSocket) error {
	l.mu.Lock()
	delete(l.ready, s.fd)
	l.mu.Unlock()
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}
