package conn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// reading is a handler that reads a body, at a speed of its own, and tells how that ended and when.
type reading struct {
	pause time.Duration // after each piece
	ended chan error
	at    time.Time
}

func (r *reading) Serve(d stream.Downstream, _ *Peer) {
	for {
		_, err := d.ReadBody()
		if err == io.EOF {
			err = nil
		} else if err == nil {
			time.Sleep(r.pause)
			continue
		}
		r.at = time.Now()
		d.Reset(stream.Cancelled)
		r.ended <- err
		return
	}
}

// A body that drips is cut, whoever drips it on purpose: but only for time that we spend waiting for the client.
func TestMinBodyRate(t *testing.T) {
	const rate, grace = 10, 5 * time.Second
	for what, tc := range map[string]struct {
		head        string
		every       time.Duration // between bytes of the body, of which there are 100 and then silence
		pause       time.Duration
		idle        time.Duration
		want        error
		notBefore   time.Duration
		notLongAter time.Duration
	}{
		"one byte a second":    {"content-length: 1000", time.Second, 0, time.Hour, stream.ErrDeadline, 5 * time.Second, 7 * time.Second},
		"silence":              {"content-length: 1000", time.Hour, 0, time.Hour, stream.ErrDeadline, 5 * time.Second, 6 * time.Second},
		"fast enough":          {"content-length: 100", 90 * time.Millisecond, 0, time.Hour, nil, 8 * time.Second, 10 * time.Second},
		"slow for us":          {"content-length: 100", time.Nanosecond, time.Minute, time.Hour, nil, time.Minute, 3 * time.Hour},
		"of unknown length":    {"transfer-encoding: chunked", time.Second, 0, 30 * time.Second, stream.ErrDeadline, 127 * time.Second, 131 * time.Second},
		"idle before too slow": {"content-length: 1000", time.Hour, 0, 2 * time.Second, stream.ErrDeadline, 2 * time.Second, 3 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg := Defaults()
			cfg.MinBodyRate, cfg.BodyGrace, cfg.BodyIdle = rate, grace, tc.idle
			near, far := net.Pipe()
			h := &reading{pause: tc.pause, ended: make(chan error, 1)}
			begin := time.Now()
			served := make(chan struct{})
			go func() {
				defer close(served)
				ServeH1(far, nil, &Peer{}, h, cfg, nil)
			}()
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_, _ = fmt.Fprintf(near, "POST / HTTP/1.1\r\nhost: a\r\n%s\r\n\r\n", tc.head)
				piece := "x"
				if tc.head == "transfer-encoding: chunked" {
					piece = "1\r\nx\r\n"
				}
				for range 100 {
					if _, err := io.WriteString(near, piece); err != nil {
						return
					}
					select {
					case <-time.After(tc.every):
					case <-served:
					}
				}
			}()
			err := <-h.ended
			if took := h.at.Sub(begin); !errors.Is(err, tc.want) || took < tc.notBefore || took > tc.notLongAter {
				t.Errorf("%s: %v after %s, want %v after %s to %s", what, err, took, tc.want, tc.notBefore, tc.notLongAter)
			}
			_ = near.Close()
			<-served
			<-sent
		})
	}
}

func TestMinBodyRateOfHTTP2(t *testing.T) {
	cfg := Defaults()
	cfg.MinBodyRate, cfg.BodyGrace = 1<<30, 20*time.Millisecond
	h := &reading{ended: make(chan error, 1)}
	s := scriptClient(t, h, cfg)
	s.send(s.post(1, 1000), frame(h2.Data, 0, 1, []byte("x")))
	s.reset(1, h2.Cancel)
	if err := <-h.ended; !errors.Is(err, stream.ErrDeadline) {
		t.Errorf("a body that stalls: %v", err)
	}
	// A stream that promised no length may say nothing for as long as it likes: until the idle time, which is an hour.
	s.send(s.post(3, -1), frame(h2.Data, 0, 3, []byte("x")))
	s.send(frame(h2.Data, h2.FlagEndStream, 3, nil))
	if err := <-h.ended; err != nil {
		t.Errorf("a stream: %v", err)
	}
}
