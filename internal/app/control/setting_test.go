package control

import (
	"testing"
	"time"
)

// TestNobodyWaitsForAComparison: what a whole configuration changes is found out while proxies, tools and probes go on asking.
func TestNobodyWaitsForAComparison(t *testing.T) {
	c, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	cfg, _ := teams(500)
	next, _ := teams(500)
	c.SetConfig(cfg)
	for range 50 { // it has to be met in the middle
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.SetConfig(next)
		}()
		asked := 0
		for ended := false; !ended && asked < 3; { // one may be just before the exchange of the two
			select {
			case <-done:
				ended = true
			case <-time.After(time.Millisecond):
				if c.comparing() {
					asked++
				}
			}
		}
		if <-done; asked == 3 {
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
