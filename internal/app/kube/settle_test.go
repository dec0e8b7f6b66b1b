package kube

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestSettle: a writer is called soon after it was woken, once for all that wakes it at one time, and also when it is woken so often that
// there is never quiet.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		wake, calls, ended := make(chan struct{}, 1), 0, make(chan struct{})
		go func() {
			defer close(ended)
			settle(ctx, wake, 50*time.Millisecond, func() bool { calls++; return true })
		}()
		synctest.Wait()
		if calls != 1 {
			t.Fatalf("%d calls at the beginning, want 1", calls)
		}
		for range 5 {
			poke(wake)
			synctest.Wait()
		}
		time.Sleep(time.Second)
		if synctest.Wait(); calls != 2 {
			t.Errorf("%d calls for what came at one time, want 1", calls-1)
		}
		calls = 0
		for range 1000 { // ten seconds of a busy cluster
			poke(wake)
			time.Sleep(10 * time.Millisecond)
		}
		if synctest.Wait(); calls < 100 || calls > 250 {
			t.Errorf("%d calls in 10 seconds without quiet, want one for each 50 ms or so", calls)
		}
		cancel()
		<-ended
	})
}

// TestSettleIsPatientWithWhatFails: a write that is refused is not tried as often as the cluster changes; what is new waits little for it,
// and not at all once nothing fails.
func TestSettleIsPatientWithWhatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		wake, calls, works, ended := make(chan struct{}, 1), 0, false, make(chan struct{})
		go func() {
			defer close(ended)
			settle(ctx, wake, 50*time.Millisecond, func() bool { calls++; return works })
		}()
		busy := func() int { // what happens in half a minute
			synctest.Wait()
			calls = 0
			for range 3000 {
				poke(wake)
				time.Sleep(10 * time.Millisecond)
			}
			synctest.Wait()
			return calls
		}
		if n := busy(); n < 15 || n > 25 {
			t.Errorf("%d tries in half a minute of what fails, want one every 2 seconds and some more at the beginning", n)
		}
		works = true
		if n := busy(); n < 300 {
			t.Errorf("%d passes in half a minute after all went well again", n)
		}
		cancel()
		<-ended
	})
}
