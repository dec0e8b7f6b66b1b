package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/owner"
)

// Predecessor is the process that runs, as a newcomer sees it. It may be used by several goroutines.
type Predecessor struct {
	PID     int
	Program string // its version

	path, program string
	log           *slog.Logger
	patience      time.Duration // for an answer: readyTime, but in tests
	grace         time.Duration // for the end of one that gives none: helloTime, but in tests

	stuck atomic.Bool   // somebody waited for his turn in vain: nobody waits for one to ask for a socket any more
	turn  chan struct{} // has a value while somebody talks, who owns what stands below
	c     *net.UnixConn // nil when the conversation is over
	over  error         // why it is, when the runner refused
}

// meet introduces us to the process that runs.
func meet(ctx context.Context, path, program string, log *slog.Logger) (*Predecessor, error) {
	name, done, err := address(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unixpacket", name)
	if err != nil {
		return nil, err
	}
	c := nc.(*net.UnixConn)
	p, err := greet(ctx, c, program)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return &Predecessor{PID: p.PID, Program: p.Program, path: path, program: program, log: log, patience: readyTime, grace: helloTime, turn: make(chan struct{}, 1), c: c}, nil
}

func greet(ctx context.Context, c *net.UnixConn, program string) (packet, error) {
	other, err := owner.OfSocket(c)
	if err != nil {
		return packet{}, &Refused{Reason: err.Error()}
	}
	// The runner serves one newcomer at a time. Whoever takes over serves those that wait: the queue moves with the door.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := send(c, packet{Kind: hello, Version: Version, PID: os.Getpid(), Program: program}); err != nil {
		return packet{}, closedAs(err)
	}
	p, files, err := receive(c)
	closeAll(files)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return packet{}, &Refused{PID: other, Reason: "it does not answer"}
	case errors.Is(err, errStrange):
		return packet{}, &Refused{PID: other, Reason: "it answers with " + err.Error()}
	case err != nil:
		return packet{}, closedAs(err)
	case p.Kind == refused:
		return packet{}, &Refused{PID: other, Reason: p.Reason}
	case p.Kind != welcome || p.Version != Version:
		return packet{}, &Refused{PID: other, Reason: fmt.Sprintf("it answers with %q of version %d", p.Kind, p.Version)}
	}
	_ = c.SetDeadline(time.Time{})
	return p, nil
}

// closedAs makes the ways in which a socket says that the other end is gone one.
func closedAs(err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return io.EOF
	}
	return err
}

// Listener returns the listening socket that the process which runs has under a key; nil when it has none, or is gone.
func (p *Predecessor) Listener(key string) *net.TCPListener {
	f := p.file(key)
	if f == nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil
	}
	t, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close()
		return nil
	}
	return t
}

// Packets returns the socket for UDP packets that the process which runs has under a key; nil when it has none, or is gone.
func (p *Predecessor) Packets(key string) *net.UDPConn {
	f := p.file(key)
	if f == nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		_ = c.Close()
		return nil
	}
	return u
}

// file returns what the process which runs has under a key; nil for nothing. One that is stuck in a takeover gives nothing, and a plan
// that opens a port then does not wait for its end.
func (p *Predecessor) file(key string) *os.File {
	if p.stuck.Load() {
		return nil
	}
	select {
	case p.turn <- struct{}{}:
	case <-time.After(p.grace):
		p.stuck.Store(true)
		return nil
	}
	defer p.done()
	if p.c == nil {
		return nil
	}
	a, files, err := p.ask(packet{Kind: want, Key: key})
	if err != nil || a.Kind != socket || len(files) != 1 {
		closeAll(files)
		return nil
	}
	return files[0]
}

func (p *Predecessor) done() { <-p.turn }

// ask sends one message and waits for its answer. After an error the conversation is over.
func (p *Predecessor) ask(m packet) (packet, []*os.File, error) {
	_ = p.c.SetDeadline(time.Now().Add(p.patience))
	err := send(p.c, m)
	var a packet
	var files []*os.File
	if err == nil || errors.Is(err, syscall.EPIPE) { // what it said before it closed can still be read
		a, files, err = receive(p.c)
	}
	if err == nil && a.Kind == refused {
		err = &Refused{PID: p.PID, Reason: a.Reason}
	}
	if err != nil {
		p.hangUp()
		var r *Refused
		if errors.As(err, &r) {
			p.over = r
		}
	}
	return a, files, err
}

func (p *Predecessor) hangUp() {
	if p.c != nil {
		_ = p.c.Close()
		p.c = nil
	}
}

// TakeOver tells the process that runs to stop accepting, and returns the door once it did. The caller must serve by
// then. An error of type *Refused means that the other one goes on, so the caller must not. Any other means that the caller is alone, or
// as good as that, and that nobody can take over from it.
func (p *Predecessor) TakeOver(ctx context.Context) (*Door, error) {
	p.turn <- struct{}{}
	defer p.done()
	if p.over != nil {
		return nil, p.over
	}
	if p.c != nil {
		a, files, err := p.ask(packet{Kind: takeOver})
		var r *Refused
		switch {
		case errors.As(err, &r):
			return nil, r
		case err == nil && a.Kind == yours && len(files) == 2:
			defer p.hangUp()
			return p.inherit(files)
		}
		closeAll(files)
		p.hangUp()
	}
	// It died: then the door is free, as soon as the kernel has closed its lock. One that is stuck keeps it.
	for by := time.Now().Add(p.grace); ; {
		d, err := open(p.path, p.program, p.log)
		if d != nil || !errors.Is(err, errRuns) {
			return d, err
		}
		if time.Now().After(by) {
			return nil, fmt.Errorf("the proxy before (pid %d) neither answers nor ends, and holds %s.lock: end it", p.PID, p.path)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *Predecessor) inherit(files []*os.File) (*Door, error) {
	ln, err := net.FileListener(files[0])
	_ = files[0].Close()
	u, ok := ln.(*net.UnixListener)
	if err != nil || !ok {
		_ = files[1].Close()
		return nil, fmt.Errorf("the handover socket did not come along: %w", err)
	}
	u.SetUnlinkOnClose(false)
	return &Door{path: p.path, ln: u, lock: files[1], program: p.program, log: p.log, patience: readyTime}, nil
}

// Close ends the conversation without taking over: the process that runs goes on.
func (p *Predecessor) Close() {
	p.turn <- struct{}{}
	defer p.done()
	p.hangUp()
}
