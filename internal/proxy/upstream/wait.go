package upstream

import "time"

// line is the requests that wait for a connection of a pool, first come first served. The pool's mutex guards it.
type line struct {
	waiters []*waiter
}

// waiter is one request in line. Exactly one grant is sent to it once it left the line by next.
type waiter struct {
	grant chan grant // room for one: who grants never waits
}

// grant is what a waiter gets: an HTTP/1 connection, the right to open one (a place is reserved), or, with neither,
// the advice to look again.
type grant struct {
	h1   *h1Conn
	open bool
	// moved means that the endpoint is gone.
	moved bool
}

func (l *line) join() *waiter {
	w := &waiter{grant: make(chan grant, 1)}
	l.waiters = append(l.waiters, w)
	return w
}

func (l *line) empty() bool { return len(l.waiters) == 0 }

// next takes the first waiter out; the line must not be empty.
func (l *line) next() *waiter {
	w := l.waiters[0]
	l.waiters[0] = nil
	l.waiters = l.waiters[1:]
	if len(l.waiters) == 0 {
		l.waiters = nil // let the array go
	}
	return w
}

// leave takes a waiter out, and reports false when it was granted something before.
func (l *line) leave(w *waiter) bool {
	for i := range l.waiters {
		if l.waiters[i] == w {
			copy(l.waiters[i:], l.waiters[i+1:])
			l.waiters[len(l.waiters)-1] = nil
			l.waiters = l.waiters[:len(l.waiters)-1]
			return true
		}
	}
	return false
}

// bound says how long an attempt may wait, and what it fails with then.
func (c *core) bound(st *state, a *Attempt) (deadline time.Time, timeout error) {
	if a.Deadline.IsZero() {
		return c.set.now().Add(st.connectTimeout()), errWaited
	}
	return a.Deadline, errWaitDeadline
}

// wait waits on a grant until a deadline. leave takes the waiter out of line and reports false when it was granted
// something meanwhile; then that is returned.
func (c *core) wait(w *waiter, deadline time.Time, timeout error, leave func(*waiter) bool) (grant, error) {
	timer := time.NewTimer(deadline.Sub(c.set.now()))
	defer timer.Stop()
	err := timeout
	select {
	case g := <-w.grant:
		return g, nil
	case <-timer.C:
	case <-c.set.ended:
		err = ErrClosed
	}
	if leave(w) {
		return grant{}, err
	}
	return <-w.grant, nil
}
