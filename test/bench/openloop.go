package main

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An open-loop load: requests are due at a constant rate whatever the answers do, and a latency counts from the moment
// when its request was due, so that a proxy that stops for a while is charged for every request that it kept waiting
// (no coordinated omission). One thread, one epoll, no garbage: the generator must not be what is measured.

// flow is one keep-alive connection with requests that are due on it, oldest first; at most one is out.
type flow struct {
	fd     int
	due    []time.Duration // since the start
	out    bool
	in     []byte // of the answer that is being read
	filled int
}

type openLoop struct {
	epoll     int
	request   []byte
	flows     []flow
	patience  time.Duration // with the first answer on each connection
	latencies []time.Duration
	late      int
	began     time.Time
}

// quiet makes this process, which does nothing else, a precise generator: one thread, no collection, and wake-ups when
// they are due and not within the default slack of 50 µs (prctl(2), PR_SET_TIMERSLACK).
func quiet() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return nil
}

// constantRate sends perSecond requests for d over connections, and waits for the last answers.
func constantRate(port, connections int, perSecond float64, d time.Duration) (loadResult, error) {
	total := int(perSecond * d.Seconds())
	o := &openLoop{
		request: []byte("GET " + path + " HTTP/1.1\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n"),
		flows:   make([]flow, connections), patience: 5 * time.Second, latencies: make([]time.Duration, 0, total),
	}
	var err error
	if o.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return loadResult{}, err
	}
	defer o.close()
	if err := o.connect(port); err != nil {
		return loadResult{}, err
	}
	if err := o.run(total, perSecond); err != nil {
		return loadResult{}, err
	}
	took := time.Since(o.began)
	slices.Sort(o.latencies)
	micros := func(q float64) float64 { return float64(quantile(o.latencies, q)) / 1e3 }
	return loadResult{Requests: float64(len(o.latencies)), Seconds: took.Seconds(), P50: micros(0.5), P99: micros(0.99), P999: micros(0.999), Late: float64(o.late)}, nil
}

func (o *openLoop) close() {
	for i := range o.flows {
		if o.flows[i].fd > 0 {
			_ = unix.Close(o.flows[i].fd)
		}
	}
	_ = unix.Close(o.epoll)
}

func (o *openLoop) connect(port int) error {
	for i := range o.flows {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		o.flows[i] = flow{fd: fd, in: make([]byte, 64<<10)}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetNonblock(fd, true)); err != nil {
			return err
		}
		if err := unix.EpollCtl(o.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return err
		}
		// One request on each before the clock runs: the proxy's connection upstream is made now.
		if err := o.warm(&o.flows[i]); err != nil {
			return err
		}
	}
	return nil
}

func (o *openLoop) warm(f *flow) error {
	if _, err := unix.Write(f.fd, o.request); err != nil {
		return err
	}
	for {
		switch n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}}, int(o.patience.Milliseconds())); {
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case err == nil && n == 0:
			return fmt.Errorf("the first request of a connection has no answer after %s", o.patience)
		}
		if done, err := f.read(); err != nil || done {
			return err
		}
	}
}

// drainTime is how long answers may still come when all requests were due. Who takes longer has failed.
const drainTime = 10 * time.Second

func (o *openLoop) run(total int, perSecond float64) error {
	o.began = time.Now()
	interval := float64(time.Second) / perSecond
	events := make([]unix.EpollEvent, len(o.flows))
	at := func(i int) time.Duration { return time.Duration(float64(i) * interval) }
	for next := 0; len(o.latencies) < total; {
		now := time.Since(o.began)
		for next < total && at(next) <= now {
			f := &o.flows[next%len(o.flows)]
			f.due = append(f.due, at(next))
			next++
			if err := o.send(f, now); err != nil {
				return err
			}
		}
		wait := at(next) - time.Since(o.began)
		if next == total {
			if wait = at(total) + drainTime - now; wait < 0 {
				return fmt.Errorf("%d of %d requests had no answer %s after the last one was due", total-len(o.latencies), total, drainTime)
			}
		}
		n, err := epollWait(o.epoll, events, max(wait, 0))
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			f := &o.flows[e.Fd]
			done, err := f.read()
			if err != nil {
				return err
			}
			if !done {
				continue
			}
			now := time.Since(o.began)
			o.latencies = append(o.latencies, now-f.due[0])
			f.due, f.out = f.due[1:], false
			if err := o.send(f, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// send sends the oldest request that is due, unless one is out.
func (o *openLoop) send(f *flow, now time.Duration) error {
	if f.out || len(f.due) == 0 {
		return nil
	}
	f.out = true
	if now-f.due[0] > time.Millisecond {
		o.late++
	}
	_, err := unix.Write(f.fd, o.request) // a few hundred bytes into an empty buffer: never short
	return err
}

// read reads what has come, and reports whether that ends the answer.
func (f *flow) read() (bool, error) {
	n, err := unix.Read(f.fd, f.in[f.filled:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if n == 0 {
		return false, errors.New("the proxy closed a connection")
	}
	f.filled += n
	length, err := answerLength(f.in[:f.filled])
	if err != nil || length == 0 || f.filled < length {
		return false, err
	}
	if f.filled > length {
		return false, fmt.Errorf("%d bytes follow an answer", f.filled-length)
	}
	f.filled = 0
	return true, nil
}

// answerLength returns how long the HTTP/1.1 answer that b begins with is, head and body; 0 when the head is not whole.
func answerLength(b []byte) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, nil
	}
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("the answer is %q", b[:min(len(b), 40)])
	}
	for line := range bytes.SplitSeq(b[:end], []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("content-length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			return end + 4 + n, err
		}
	}
	return 0, errors.New("the answer has no Content-Length")
}

// epollWait is epoll_pwait2(2): its timeout is in nanoseconds, that of epoll_wait in milliseconds.
func epollWait(epoll int, events []unix.EpollEvent, d time.Duration) (int, error) {
	ts := unix.NsecToTimespec(int64(d))
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, fmt.Errorf("epoll_pwait2: %w", errno)
	}
	return int(n), nil
}
