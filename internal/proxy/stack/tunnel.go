package stack

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// tunnelIdle ends a tunnel in which nothing moves in either direction.
const (
	tunnelIdle = time.Hour
	tunnelLook = 16 * time.Second // how often somebody looks at the clock
)

// tunnel carries bytes both ways after a protocol switch (RFC 9110 section 7.8, RFC 8441): this goroutine towards the
// client, another towards the endpoint. Each direction ends on its own (half-close); an error ends both.
func (x *exchange) tunnel() {
	x.responded = true
	l := x.lease
	if x.d.WriteHead(&x.resp, false) != nil || x.d.Hijack() != nil {
		x.downstreamFailed()
		return
	}
	if err := l.Hijack(); err != nil {
		x.cut(err, telemetry.UpstreamProtocolError, "upgrade_failed")
		return
	}
	var up sync.WaitGroup
	var in atomic.Uint64
	x.aside(&up, func() {
		for {
			p, err := x.d.ReadBody()
			in.Add(uint64(len(p)))
			if len(p) > 0 || err == io.EOF {
				if l.WriteBody(p, err == io.EOF) != nil || l.Flush() != nil {
					l.Cancel(stream.Cancelled)
					return
				}
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				l.Cancel(stream.Cancelled)
				return
			}
		}
	}, func() { l.Cancel(stream.Internal) })
	moved, seen, idle := time.Now(), uint64(0), tunnelIdle
	if x.idle > 0 {
		idle = x.idle
	}
	for {
		l.SetReadDeadline(time.Now().Add(min(tunnelLook, max(idle/4, time.Millisecond))))
		p, err := l.ReadBody()
		x.rec.BodyOut += uint64(len(p))
		if len(p) > 0 || err == io.EOF {
			moved = time.Now()
			if x.d.WriteBody(p, err == io.EOF) != nil || x.d.Flush() != nil {
				x.rec.Flags |= telemetry.DownstreamClosed
				break
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, stream.ErrDeadline) {
			break
		}
		if n := in.Load(); n != seen {
			seen, moved = n, time.Now()
		}
		if time.Since(moved) > idle {
			x.rec.Flags |= telemetry.StreamIdle
			x.rec.Detail = "stream_idle_timeout"
			break
		}
	}
	// The endpoint's side is over. A client that still sends has nobody to send to.
	if x.watched != nil {
		x.watched.StopReading()
	} else {
		x.d.Reset(stream.Cancelled)
	}
	l.Cancel(stream.Cancelled)
	up.Wait()
	x.rec.BodyIn = in.Load()
	x.finish(nil)
}
