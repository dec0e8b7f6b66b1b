package conn

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

func TestMemory(t *testing.T) {
	var none *Memory
	none.Take(1 << 40)
	none.keep(1 << 40)
	if none.Short() || !none.room(true) {
		t.Error("what has no limit ran out")
	}
	m := NewMemory(1200)
	for _, tt := range []struct {
		bodies       int
		first, waits bool
	}{{0, true, true}, {299, true, true}, {300, true, false}, {449, true, false}, {450, false, false}} {
		m.keep(tt.bodies)
		if first, waits := m.room(false), m.room(true); first != tt.first || waits != tt.waits {
			t.Errorf("%d bytes wait: room for a body of which nothing waits %v, for others %v", tt.bodies, first, waits)
		}
		m.keep(-tt.bodies)
	}
	if n, ended := m.Bodies(); n != 0 || ended != 4 {
		t.Errorf("%d bytes, %d ended", n, ended)
	}
	m.Take(600)
	if m.Short() {
		t.Error("short with half of the memory")
	}
	m.Take(1)
	if !m.Short() {
		t.Error("not short with more than half of the memory taken")
	}
	m.Take(-601)
	m.SetShort(true)
	if !m.Short() {
		t.Error("not short though the watch says so")
	}
	m.SetShort(false)
	if m.Short() {
		t.Error("short with nothing taken")
	}
}

// A body that nobody reads is ended when there is no memory for more of it, on its own: others on the same connection go on,
// a small one even then, and in the end everything is given back.
func TestMemoryEndsBodiesThatNobodyReads(t *testing.T) {
	checkGoroutines(t)
	const part = 16 << 10
	cfg := Defaults()
	cfg.Memory = NewMemory(4 * 4 * part) // four parts may wait
	gone := make(chan struct{})
	s := scriptClient(t, handlerFunc(func(d stream.Downstream, p *Peer) {
		r := d.Request()
		if string(r.Path) == "/" && r.Length == message.Unknown {
			<-gone // who does not read
			d.Reset(stream.Internal)
			return
		}
		var n int
		for {
			b, err := d.ReadBody()
			if n += len(b); err == io.EOF {
				break
			} else if err != nil {
				return
			}
		}
		_ = d.WriteHead(&message.Response{Status: 200, Length: message.Unknown, HasBody: true}, false)
		_ = d.WriteBody([]byte{byte(n)}, true)
		_ = d.Flush()
	}), cfg)
	whole := bytes.Repeat([]byte("x"), part)
	s.send(s.post(1, message.Unknown))
	for range 5 {
		s.send(frame(h2.Data, 0, 1, whole))
	}
	if code := h2.ErrCode(binary.BigEndian.Uint32(s.expect(h2.RSTStream, 1))); code != h2.EnhanceYourCalm {
		t.Errorf("the body that nobody reads was ended with %v", code)
	}
	s.send(s.post(3, 5), frame(h2.Data, h2.FlagEndStream, 3, []byte("hello")))
	if got := s.expect(h2.Data, 3); string(got) != "\x05" {
		t.Errorf("a small body got %q", got)
	}
	if _, ended := cfg.Memory.Bodies(); ended != 1 {
		t.Errorf("%d bodies were ended", ended)
	}
	close(gone)
	s.send(s.get(5))
	s.expect(h2.Headers, 5)
	_ = s.nc.Close()
	for by := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		n, _ := cfg.Memory.Bodies()
		if taken := cfg.Memory.taken.Load(); n == 0 && taken == 0 {
			return
		} else if time.Now().After(by) {
			t.Fatalf("%d bytes of bodies and %d of streams were not given back", n, taken)
		}
	}
}
