package upstream

import "time"

// Bounds of the time between two looks of the keeper while there is something to keep. What is kept says what it needs: a
// proxy that only holds connections with long idle times should not wake its processor all the time.
const (
	keepOften  = 10 * time.Millisecond
	keepEvery  = 500 * time.Millisecond // while an endpoint is ejected
	keepSeldom = 10 * time.Second
)

// wake makes sure that the keeper looks again: there is something to keep.
func (s *Set) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked()
}

// wakeLocked is wake with s.mu held.
func (s *Set) wakeLocked() {
	switch {
	case s.closed:
	case !s.started:
		s.started = true
		s.wg.Go(s.keep)
	case s.asleep.Load():
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// keep is the keeper: it runs while the Set lives, and sleeps while there is nothing to keep.
func (s *Set) keep() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		// Whoever brings something new from here on kicks; who came before is seen by this tick.
		s.asleep.Store(true)
		pause, more := s.tick()
		var due <-chan time.Time
		if more {
			timer.Reset(pause)
			due = timer.C
		}
		if more && pause <= keepEvery {
			s.asleep.Store(false) // the next tick is soon enough for anything new
		}
		select {
		case <-due:
		case <-s.kick:
		case <-s.live.Done():
			return
		}
	}
}

// tick closes what was idle or old enough, lets ejected endpoints back, and forgets unused passthrough clusters. It
// returns when to look again, and whether there is a reason to.
func (s *Set) tick() (pause time.Duration, more bool) {
	now := s.now()
	s.coarse.Store(int64(now.Sub(s.base)))
	pause = keepSeldom
	s.each(func(of *Cluster) {
		c := of.running()
		if c == nil {
			return
		}
		if d, left := c.trim(); left {
			more = true
			pause = min(pause, d)
		}
		if interval, ejected := c.sweep(now); ejected {
			more = true
			pause = min(pause, interval, keepEvery)
		}
		if d, warming := c.warm(now); warming {
			more = true
			pause = min(pause, d)
		}
		if c.expire() {
			more = true
		}
	})
	if s.passthrough.expire() {
		more = true
	}
	return max(pause, keepOften), more
}
