package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A machine that sleeps stops the clock of timers, and not that of certificates.
func TestSleepOfTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(Options{})
		began := time.Now()
		if err := a.sleep(t.Context(), 12*time.Hour); err != nil || time.Since(began) != 12*time.Hour {
			t.Errorf("awake: %v after %s, want 12 h", err, time.Since(began))
		}
		began = time.Now()
		a.now = func() time.Time {
			now := time.Now()
			if now.Sub(began) >= time.Hour {
				now = now.Add(20 * time.Hour)
			}
			return now
		}
		if err := a.sleep(t.Context(), 12*time.Hour); err != nil || time.Since(began) > time.Hour+glance {
			t.Errorf("after a night: %v after %s of being awake", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.sleep(ctx, time.Hour); err == nil {
			t.Error("the end is not heard")
		}
		a.Renew()
		if began = time.Now(); a.sleep(t.Context(), time.Hour) != nil || time.Since(began) > 0 {
			t.Error("Renew is not heard")
		}
	})
}
