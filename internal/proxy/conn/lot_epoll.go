//go:build linux && !portable

package conn

import (
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Lot is where HTTP/1 connections are parked that have been idle for a while (Config.ParkAfter).
//
// A goroutine that waits holds a stack of at least 4 KB, and inside of TLS two buffers. A parked connection is its socket and
// what is known of the peer, a third of that. One goroutine, which starts with Open or the first connection and ends with Close, waits
// for all of them, by an epoll set of its own that Go's poller looks after like after any other file; so no thread waits.
//
// A connection leaves when the kernel has something to tell about it, when a drain begins, when it was idle for too long, or
// with Close: then the function that was given to Park is called, on a goroutine of its own.
type Lot struct {
	mu     sync.Mutex
	set    *os.File // the epoll set; nil before the first connection
	raw    syscall.RawConn
	fd     int
	places []*Parked // by what the kernel calls them
	free   []int32
	oldest *Parked // and on through next, in the order in which they came
	newest *Parked
	closed bool
	ended  chan struct{} // closed when the goroutine has ended

	events [32]syscall.EpollEvent // of the goroutine
}

// Park takes a connection in and reports whether it did; then wake is called once, when it is to be served (Parked.Serve).
// A nil Lot takes none.
func (l *Lot) Park(p *Parked, wake func()) bool {
	if l == nil || p.drain.Begun() {
		return false
	}
	sc := p.socket()
	if sc == nil {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	p.wake = wake
	p.until = time.Now().Add(p.cfg.Idle - p.cfg.ParkAfter)
	if !l.add(p, raw) {
		return false
	}
	// From here on it may be served already, by the goroutine that wake is called on: it is the Lot's to say whether it is.
	m := p.drain.Join(func() { l.release(p, called) })
	l.mu.Lock()
	inside := p.inside
	if inside {
		p.member = m
	}
	l.mu.Unlock()
	if !inside {
		m.Leave()
	}
	return true
}

func (l *Lot) add(p *Parked, raw syscall.RawConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.set == nil && !l.openLocked() {
		return false
	}
	if n := len(l.free); n > 0 {
		p.place, l.free = l.free[n-1], l.free[:n-1]
	} else {
		p.place = int32(len(l.places))
		l.places = append(l.places, nil)
	}
	// One event, and level-triggered: what came in before this is told too.
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Pad: p.place}
	var eerr error
	err := raw.Control(func(fd uintptr) {
		e.Fd = int32(fd)
		eerr = syscall.EpollCtl(l.fd, syscall.EPOLL_CTL_ADD, int(fd), &e)
	})
	if err != nil || eerr != nil {
		l.free = append(l.free, p.place)
		return false
	}
	l.places[p.place], p.inside = p, true
	if p.prev = l.newest; p.prev != nil {
		p.prev.next = p
	} else {
		l.oldest = p
		_ = l.set.SetReadDeadline(p.until)
	}
	p.next, l.newest = nil, p
	return true
}

// Open takes the file descriptor that the Lot needs, which the first connection would do else: before there is none left.
func (l *Lot) Open() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.set == nil && !l.closed {
		l.openLocked()
	}
}

// openLocked makes the set and starts the goroutine that waits for it.
func (l *Lot) openLocked() bool {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	// Non-blocking is what makes os.NewFile give it to the poller; epoll_wait doesn't care.
	if err := syscall.SetNonblock(fd, true); err != nil {
		_ = syscall.Close(fd)
		return false
	}
	set := os.NewFile(uintptr(fd), "idle connections")
	raw, err := set.SyscallConn()
	if err == nil {
		err = set.SetReadDeadline(time.Time{}) // fails where the poller did not take it
	}
	if err != nil {
		_ = set.Close()
		return false
	}
	l.set, l.raw, l.fd, l.ended = set, raw, fd, make(chan struct{})
	go l.run()
	return true
}

func (l *Lot) run() {
	defer close(l.ended)
	for {
		err := l.raw.Read(l.collect)
		if !isTimeout(err) {
			return // closed
		}
		l.expire(time.Now())
	}
}

// collect wakes the connections that the kernel names. It returns false for there will be more.
func (l *Lot) collect(fd uintptr) bool {
	for {
		n, err := syscall.EpollWait(int(fd), l.events[:], 0)
		if err == syscall.EINTR {
			continue
		}
		for i := range max(n, 0) {
			if p := l.at(l.events[i].Pad); p != nil {
				w := called
				if l.events[i].Events&(syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
					w = ending
				}
				l.release(p, w)
			}
		}
		if n < len(l.events) {
			return false
		}
		runtime.Gosched() // who has ended leaves its goroutine to others
	}
}

// at returns the connection in a place: perhaps another one than the event was for, which then is woken for nothing.
func (l *Lot) at(place int32) *Parked {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int(place) >= len(l.places) {
		return nil
	}
	return l.places[place]
}

// expire ends the connections whose time is over.
func (l *Lot) expire(now time.Time) {
	for {
		l.mu.Lock()
		p := l.oldest
		if p == nil || p.until.After(now) {
			var next time.Time
			if p != nil {
				next = p.until
			}
			_ = l.set.SetReadDeadline(next)
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		l.release(p, timedOut)
	}
}

// End ends a connection, if it is here. To close its socket alone would not do: the kernel forgets a socket that is closed, and nobody
// would ever be told.
func (l *Lot) End(p *Parked) {
	if l != nil {
		l.release(p, timedOut)
	}
}

// release lets a connection go, unless that was done already.
func (l *Lot) release(p *Parked, w why) {
	l.mu.Lock()
	if !p.inside {
		l.mu.Unlock()
		return
	}
	l.removeLocked(p)
	p.why = w
	wake := p.wake
	p.wake = nil
	l.mu.Unlock()
	go wake()
}

func (l *Lot) removeLocked(p *Parked) {
	p.inside = false
	l.places[p.place] = nil
	l.free = append(l.free, p.place)
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		l.oldest = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		l.newest = p.prev
	}
	p.next, p.prev = nil, nil
	if l.oldest == nil {
		l.places, l.free = nil, nil // what a burst made of them
	}
	if raw, err := p.socket().SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.EpollCtl(l.fd, syscall.EPOLL_CTL_DEL, int(fd), nil) })
	}
}

// Close wakes all connections that are parked, takes no more, and returns when the Lot's goroutine has ended.
func (l *Lot) Close() {
	l.mu.Lock()
	l.closed = true
	set, ended := l.set, l.ended
	l.mu.Unlock()
	if set == nil {
		return
	}
	for {
		l.mu.Lock()
		p := l.oldest
		l.mu.Unlock()
		if p == nil {
			break
		}
		l.release(p, called)
	}
	_ = set.Close()
	<-ended
}
