package local

import (
	"context"
	"net"
	"time"
)

// Probing: often while a program starts, rarely once it serves. A program is ready when it accepts connections on all
// its ports, and no longer when it refused probeFailures times in a row (its proxies' own passive health is quicker).
const (
	probeStarting = 25 * time.Millisecond
	probeServing  = 2 * time.Second
	probeTimeout  = time.Second
	probeFailures = 2
)

// probe tells changed whether all addrs accept connections, and when not the first that doesn't, whenever either changes,
// until ctx ends.
func probe(ctx context.Context, addrs []string, changed func(ready bool, bad string)) {
	ready, failures, told := false, 0, ""
	pause := probeStarting
	for {
		bad, err := refused(ctx, addrs)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			failures = 0
			if !ready {
				ready, told = true, ""
				changed(true, "")
			}
			pause = probeServing
		case ready:
			failures++
			pause = probeStarting
			if failures >= probeFailures {
				ready, told = false, bad
				changed(false, bad)
			}
		default:
			if bad != told {
				told = bad
				changed(false, bad)
			}
			pause = min(pause+pause/4, time.Second)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// refused returns the first address that does not accept a connection.
func refused(ctx context.Context, addrs []string) (string, error) {
	d := net.Dialer{Timeout: probeTimeout}
	for _, a := range addrs {
		c, err := d.DialContext(ctx, "tcp", a)
		if err != nil {
			return a, err
		}
		_ = c.Close()
	}
	return "", nil
}
