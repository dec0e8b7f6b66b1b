//go:build linux && !portable

package conn

import (
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// In these tests there is one processor and somebody who never waits. The kernel may still stop who just noticed something in the
// middle of a system call, and Go gives his processor away then: so what happens nearly always is asked for only mostly.

func TestPollLetsOthersHaveTheirTurn(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var p Poll
	defer p.Close()
	var got atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			got.Add(1)
		}
	})
	p.Look() // the reader waits by now
	noticed := 0
	for i := range int32(100) {
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if p.Look(); got.Load() == i+1 {
			noticed++
		}
	}
	if noticed < 50 {
		t.Errorf("%d of 100 bytes were noticed by looking once", noticed)
	}
	_ = w.Close()
	wg.Wait()
	_ = r.Close()
}

func TestPollIsShared(t *testing.T) {
	var p Poll
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				p.Look()
			}
		})
	}
	wg.Wait()
	p.Close()
	p.Look()
	p.Close()
	p.Close()
	(*Poll)(nil).Look()
}

// What a client ends at once, by resets or with its connection, does not all end before somebody else's bytes are noticed.
func TestH2ServerEndsAFewExchangesAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, resets := range []bool{true, false} {
		before := many
		for range 5 {
			t.Run("", func(t *testing.T) { before = min(before, endedBeforeAnythingElse(t, resets)) })
			if before <= many/4 {
				break
			}
		}
		if before > many/4 {
			t.Errorf("resets %v: %d of %d exchanges had ended before anything else was noticed", resets, before, many)
		}
	}
}

const many = 100

func endedBeforeAnythingElse(t *testing.T, resets bool) int {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	noticed := make(chan int, 1)
	var begun, ended atomic.Int32
	go func() { // somebody else
		_, _ = r.Read(make([]byte, 1))
		noticed <- int(ended.Load())
	}()
	cfg := Defaults()
	cfg.Poll = new(Poll)
	defer cfg.Poll.Close()
	all := make(chan bool)
	s := scriptClient(t, handlerFunc(func(d stream.Downstream, p *Peer) {
		d.(stream.Notifier).OnGone(func(stream.Cause) {
			if ended.Add(1) == 1 {
				_, _ = w.Write([]byte{1})
			}
		})
		if begun.Add(1) == many {
			close(all)
		}
		wait(d, p)
	}), cfg)
	var asks, ends []byte
	for i := range uint32(many) {
		asks = append(asks, s.post(2*i+1, -1)...)
		ends = append(ends, frame(h2.RSTStream, 0, 2*i+1, u32(uint32(h2.Cancel)))...)
	}
	s.send(asks)
	<-all
	if resets {
		s.send(ends)
	} else {
		_ = s.nc.Close()
	}
	return <-noticed
}
