package upstream

import "time"

// keepEvery is the longest time between two looks at idle connections and ejected endpoints while there are any.
const keepEvery = 500 * time.Millisecond

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
	timer := time.NewTimer(keepEvery)
	defer timer.Stop()
	for {
		pause, more := s.tick()
		if !more {
			// Whoever brings something new after this line wakes us; who came before it is seen by another look.
			s.asleep.Store(true)
			if pause, more = s.tick(); !more {
				select {
				case <-s.kick:
				case <-s.live.Done():
					return
				}
				s.asleep.Store(false)
				continue
			}
			s.asleep.Store(false)
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
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
	pause = keepEvery
	s.each(func(c *Cluster) {
		if c.trim() {
			more = true
		}
		if interval, ejected := c.sweep(now); ejected {
			more = true
			pause = min(pause, interval)
		}
	})
	if s.passthrough.expire() {
		more = true
	}
	return max(pause, 10*time.Millisecond), more
}
