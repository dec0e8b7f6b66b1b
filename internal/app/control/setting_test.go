package control

import (
	"runtime"
	"testing"
	"time"
)

// TestNobodyWaitsForAComparison: what a whole configuration changes is found out while proxies, tools and probes go on asking.
func TestNobodyWaitsForAComparison(t *testing.T) {
	if n := runtime.GOMAXPROCS(0); n < 2 { // who asks has to run beside who compares
		runtime.GOMAXPROCS(2)
		defer runtime.GOMAXPROCS(n)
	}
	c, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	cfg, _ := teams(1000)
	next, _ := teams(1000)
	c.SetConfig(cfg)
	met := 0 // how many comparisons somebody met; between the two locks is a moment without one
	for range 200 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.SetConfig(next)
		}()
		for ended, asked := false, false; !ended; {
			select {
			case <-done:
				ended = true
			case <-time.After(100 * time.Microsecond):
				if !asked && c.comparing() {
					asked = true
					met++
				}
			}
		}
		if met >= 3 {
			return
		}
		cfg, next = next, cfg
	}
	t.Error("while a configuration is compared with the one before, everybody waits")
}

// comparing reports whether somebody is setting something and keeps nobody from Control.mu.
func (c *Control) comparing() bool {
	if !c.mu.TryLock() {
		return false
	}
	defer c.mu.Unlock()
	if c.setting.TryLock() {
		c.setting.Unlock()
		return false
	}
	return true
}
