package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/owner"
)

// Runner is what the process that serves does for one that takes over.
type Runner interface {
	// Socket returns the listening socket with a key, nil when there is none. It stays the Runner's.
	Socket(key string) syscall.Conn
	// Yield stops accepting connections, on all sockets that Socket gives, and everything else that two processes must
	// not do at once. What is open goes on. It cannot be undone.
	Yield()
}

// Door is the place where a newcomer asks. Its owner holds a lock beside the socket, so that a socket whose process died is
// told from one that is just slow.
type Door struct {
	path    string
	ln      *net.UnixListener
	lock    *os.File
	program string
	log     *slog.Logger

	patience time.Duration // readyTime, but in tests
}

// Claim asks for the door at path. Exactly one of the results is not nil: a Door where nobody else runs, else the
// Predecessor that runs. program is our version, for people. When somebody else is taking over just now, Claim waits for
// the outcome. An error of type *Refused means that somebody runs who cannot hand over.
func Claim(ctx context.Context, path, program string, log *slog.Logger) (*Door, *Predecessor, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, fmt.Errorf("the folder of the handover socket can't be made: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lineTime)
	defer cancel()
	for {
		d, err := open(path, program, log)
		if d != nil || !errors.Is(err, errRuns) {
			return d, nil, err
		}
		p, err := meet(ctx, path, program, log)
		if p != nil || !retry(err) {
			return nil, p, err
		}
		// The owner of the lock has not opened its door yet, or is just gone: look again.
		select {
		case <-ctx.Done():
			return nil, nil, &Refused{Reason: fmt.Sprintf("it holds %s.lock and does not answer: %v", path, err)}
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func retry(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

var errRuns = errors.New("another process has the door")

// open makes the door of a process that is alone.
func open(path, program string, log *slog.Logger) (*Door, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the handover socket can't be locked: %w", err)
	}
	if err := control(lock, func(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errRuns
		}
		return nil, fmt.Errorf("the handover socket can't be locked: %w", err)
	}
	// With the lock, whatever is there belongs to nobody.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		_ = lock.Close()
		return nil, fmt.Errorf("a stale handover socket is in the way: %w", err)
	}
	name, done, err := address(path)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	defer done()
	// The mode that the socket has when it is bound becomes that of the file (unix(7)): at no moment is it open to others.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
	}}
	ln, err := lc.Listen(context.Background(), "unixpacket", name)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("the handover socket can't be opened: %w", err)
	}
	u := ln.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // its file may be somebody else's by then
	return &Door{path: path, ln: u, lock: lock, program: program, log: log, patience: readyTime}, nil
}

// control runs f on a file's descriptor, which (unlike File.Fd) leaves the file in its mode.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	if err := raw.Control(func(fd uintptr) { derr = do(int(fd)) }); err != nil {
		return err
	}
	return derr
}

// Serve answers newcomers, one after the other, until one has taken over (true) or ctx is over (false). The Door is
// closed then.
func (d *Door) Serve(ctx context.Context, r Runner) bool {
	stop := context.AfterFunc(ctx, func() { _ = d.ln.Close() })
	defer stop()
	for {
		c, err := d.ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if c != nil {
				_ = c.Close()
			}
			d.Close()
			return false
		case err != nil: // out of descriptors: it passes
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		over, err := d.answer(ctx, c, r)
		_ = c.Close()
		if over {
			_ = d.ln.Close()
			_ = d.lock.Close()
			return true
		}
		if err != nil {
			d.log.Warn("a new proxy did not take over; this one goes on", "error", err)
		}
	}
}

// Close ends the door of a process that ends without a successor.
func (d *Door) Close() {
	_ = os.Remove(d.path) // with the lock still held, so it is ours
	_ = d.ln.Close()
	_ = d.lock.Close()
}

// answer serves one newcomer. over: it has taken over.
func (d *Door) answer(ctx context.Context, c *net.UnixConn, r Runner) (over bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := owner.OfSocket(c); err != nil {
		return false, err
	}
	_ = c.SetDeadline(time.Now().Add(helloTime))
	refuse := func(format string, args ...any) error {
		reason := fmt.Sprintf(format, args...)
		_ = c.SetDeadline(time.Now().Add(helloTime))
		_ = send(c, packet{Kind: refused, Reason: reason})
		return errors.New(reason)
	}
	p, files, err := receive(c)
	closeAll(files)
	switch {
	case errors.Is(err, errStrange):
		return false, refuse("%v", err)
	case err != nil:
		return false, fmt.Errorf("it did not say who it is: %w", err)
	case p.Kind != hello:
		return false, refuse("%q is not how a conversation begins", p.Kind)
	case p.Version != Version:
		return false, refuse("it speaks version %d of the handover, not %d", Version, p.Version)
	}
	newcomer := p
	if err := send(c, packet{Kind: welcome, Version: Version, PID: os.Getpid(), Program: d.program}); err != nil {
		return false, err
	}
	d.log.Info("a new proxy asks for the listeners", "pid", newcomer.PID, "version", newcomer.Program)
	_ = c.SetDeadline(time.Now().Add(d.patience))
	for {
		p, files, err := receive(c)
		closeAll(files)
		switch {
		case errors.Is(err, errStrange):
			return false, refuse("%v", err)
		case ctx.Err() != nil:
			return false, nil // this process ends, so the newcomer goes on alone, with the sockets that it has
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, refuse("it was not ready within %s", d.patience)
		case err != nil:
			return false, fmt.Errorf("it ended before it was ready (pid %d): %w", newcomer.PID, err)
		}
		switch p.Kind {
		case want:
			if err := give(c, r.Socket(p.Key)); err != nil {
				return false, err
			}
		case takeOver:
			r.Yield()
			d.yield(c)
			return true, nil
		default:
			return false, refuse("%v: %q", errStrange, p.Kind)
		}
	}
}

func give(c *net.UnixConn, s syscall.Conn) error {
	if s == nil {
		return send(c, packet{Kind: none})
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return send(c, packet{Kind: none})
	}
	// Inside Control the descriptor is valid, and needs no copy, whose File.Fd would make the shared socket block.
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = send(c, packet{Kind: socket}, int(fd)) }); err != nil {
		return send(c, packet{Kind: none}) // closed just now
	}
	return serr
}

// yield passes the door on. There is no way back: even if the newcomer is gone, this process has stopped accepting, so it
// ends, and whoever starts it starts it again.
func (d *Door) yield(c *net.UnixConn) {
	_ = c.SetDeadline(time.Now().Add(helloTime))
	raw, err := d.ln.SyscallConn()
	if err == nil {
		err = control(d.lock, func(lock int) error {
			var serr error
			return errors.Join(raw.Control(func(fd uintptr) { serr = send(c, packet{Kind: yours}, int(fd), lock) }), serr)
		})
	}
	if err != nil {
		d.log.Error("the new proxy is gone after it took over", "error", err)
	}
}
