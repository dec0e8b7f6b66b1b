package advisories

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/proxy/conn"
)

// slow holds requests to /hold until they are given up.
func slow(m *message, nc net.Conn, _ *bufio.Reader) verdict {
	if m.target != "/hold" {
		return proceed
	}
	_, _ = io.Copy(io.Discard, nc)
	return done
}

var hold = []string{":method", "POST", ":scheme", "http", ":path", "/hold", ":authority", "a"}

// attackBytes is how much an attacker sends who is not stopped.
const attackBytes = 2 << 20

// flood is one way to make a server work, store or answer more than it is asked. Each is sent while nothing is read, and
// again while everything is.
type flood struct {
	name     string
	settings []byte
	first    []string // fields of a request that is opened before, on stream 1
	make     func(i uint32) []byte
	inBlock  bool // it never leaves a header block, in which nothing else may be said (RFC 9113 section 6.10)
	endless  bool // nobody ends it within attackBytes: each request is refused, or costs no more than it is worth

	knock string // instead of all that: an HTTP/1 connection that says this, and another one when it is over
	holds bool   // it is kept open
}

// id is the stream of the i-th request of a flood.
func id(i uint32) uint32 { return 2*i + 3 }

func floods() []flood {
	big := strings.Repeat("v", 4000)
	empty := raw("", "")
	bomb := func(i uint32) []byte { // one entry of the dynamic table, referred to 4000 times
		return open(id(i), true, append(append(raw(get...), 0x40, 1, 'x', 0x7f, 0xa1, 0x1e), append([]byte(big), bytes.Repeat([]byte{0xbe}, 4000)...)...))
	}
	return []flood{
		{name: "1 rapid reset", make: func(i uint32) []byte { return append(open(id(i), false, raw(hold...)), reset(id(i))...) }},
		{name: "1 rapid reset of requests that were answered", make: func(i uint32) []byte {
			return append(open(id(i), false, raw(post...)), reset(id(i))...)
		}},
		{name: "3 resets by WINDOW_UPDATE of 0", make: func(i uint32) []byte {
			return append(open(id(i), false, raw(hold...)), frame(http2.FrameWindowUpdate, 0, id(i), u32(0))...)
		}},
		{name: "3 resets by window overflow", make: func(i uint32) []byte {
			return append(open(id(i), false, raw(hold...)), frame(http2.FrameWindowUpdate, 0, id(i), u32(1<<31-1))...)
		}},
		{name: "3 resets by DATA after END_STREAM", make: func(i uint32) []byte {
			return append(open(id(i), true, raw(hold...)), data(id(i), false, "x")...)
		}},
		{name: "3 resets by HEADERS after END_STREAM", make: func(i uint32) []byte {
			return append(open(id(i), true, raw(hold...)), open(id(i), true, raw("x", "y"))...)
		}},
		{name: "3 resets by PRIORITY on itself", make: func(i uint32) []byte {
			return append(open(id(i), false, raw(hold...)), frame(http2.FramePriority, 0, id(i), append(u32(id(i)), 0))...)
		}},
		{name: "3 resets by content-length", make: func(i uint32) []byte {
			return append(open(id(i), false, raw(with(hold, "content-length", "1")...)), data(id(i), false, "xy")...)
		}},
		{name: "3 streams over the limit", make: func(i uint32) []byte { return open(id(i), false, raw(hold...)) }},
		{name: "4 CONTINUATION", inBlock: true, make: func(i uint32) []byte {
			if i == 0 {
				return frame(http2.FrameHeaders, 0, id(0), raw(get...))
			}
			return frame(http2.FrameContinuation, 0, id(0), raw("x", big))
		}},
		{name: "4 CONTINUATION, Huffman", inBlock: true, make: func(i uint32) []byte {
			if i == 0 {
				return frame(http2.FrameHeaders, 0, id(0), raw(get...))
			}
			p := hpack.AppendHuffmanString(nil, strings.Repeat("0", 190)) // 119 bytes
			return frame(http2.FrameContinuation, 0, id(0), append([]byte{0, 1, 'x', 0x80 | byte(len(p))}, p...))
		}},
		{name: "4 CONTINUATION, empty", inBlock: true, make: func(i uint32) []byte {
			if i == 0 {
				return frame(http2.FrameHeaders, 0, id(0), raw(get...))
			}
			return frame(http2.FrameContinuation, 0, id(0), nil)
		}},
		{name: "5 dribble of windows", settings: setting(http2.SettingInitialWindowSize, 1), first: with(get[:4], ":path", "/big", ":authority", "a"),
			make: func(uint32) []byte { return frame(http2.FrameWindowUpdate, 0, 1, u32(1)) }},
		{name: "6 PING", make: func(uint32) []byte { return frame(http2.FramePing, 0, 0, make([]byte, 8)) }},
		{name: "7 PRIORITY", make: func(i uint32) []byte {
			return frame(http2.FramePriority, 0, id(i%500), append(u32(id(i*7%500)+2), byte(i)))
		}},
		{name: "8 malformed requests", make: func(i uint32) []byte { return open(id(i), true, raw(":method", "GET")) }},
		{name: "8 bad names", make: func(i uint32) []byte { return open(id(i), true, raw(with(get, "BAD\r\n", "x")...)) }},
		{name: "9 SETTINGS", make: func(i uint32) []byte {
			return frame(http2.FrameSettings, 0, 0, setting(http2.SettingHeaderTableSize, i%5000))
		}},
		{name: "10 empty names", make: func(i uint32) []byte { return open(id(i), true, append(raw(get...), bytes.Repeat(empty, 60)...)) }},
		{name: "12 empty DATA", first: hold, make: func(uint32) []byte { return data(1, false, "") }},
		{name: "12 padded empty DATA", first: hold, make: func(uint32) []byte {
			return frame(http2.FrameData, http2.FlagDataPadded, 1, append([]byte{200}, make([]byte, 200)...))
		}},
		{name: "13 frames of one byte", first: post, endless: true, make: func(uint32) []byte { return data(1, false, "x") }},
		{name: "16 unique names", endless: true, make: func(i uint32) []byte {
			name := []byte("x-" + strings.Repeat("n", 2000))
			for j := range 8 {
				name[2+j] = 'a' + byte(i>>(4*j))&15
			}
			return open(id(i), true, raw(with(get, string(name), "v")...))
		}},
		{name: "17 references to a large entry", endless: true, make: bomb},
		{name: "18 cookie crumbs", endless: true, make: func(i uint32) []byte {
			return open(id(i), true, append(raw(with(get, "cookie", "a=")...), bytes.Repeat([]byte{0x0f, 0x11, 0}, 5000)...))
		}},
		{name: "19 repeated hosts", endless: true, make: func(i uint32) []byte {
			return open(id(i), true, append(raw(get...), bytes.Repeat([]byte{0x0f, 0x17, 1, 'a'}, 4000)...))
		}},
		{name: "22 unknown frames", make: func(i uint32) []byte {
			return frame(http2.FrameType(0x0a+i%0xf6), http2.Flags(i), i%10, make([]byte, i%64))
		}},
		{name: "26 METADATA frames", first: hold, endless: true, make: func(i uint32) []byte { return frame(0x4d, http2.Flags(i%5), 1, make([]byte, i%2*16384)) }},
	}
}

// Each flood ends the connection with a reason, or costs no more than it is worth; the client that behaves does not
// notice.
func TestFlood(t *testing.T) {
	for _, f := range floods() {
		for _, reads := range []bool{false, true} {
			name := f.name
			if reads {
				name += ", answers are read"
			}
			t.Run(name, func(t *testing.T) {
				o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
					if m.target == "/big" {
						_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n"+strings.Repeat("x", 1<<16))
						_, _ = io.Copy(io.Discard, nc)
						return done
					}
					return slow(m, nc, br)
				})
				l := newLab(t, o.addr)
				l.siege(func() int64 { return f.run(l, reads) })
			})
		}
	}
}

// run sends a flood until the proxy ends the connection, or attackBytes are sent.
func (f *flood) run(l *lab, reads bool) int64 {
	c := l.dialH2(f.settings...)
	c.mute = f.inBlock
	if t, ok := c.nc.(*net.TCPConn); ok && !reads {
		_ = t.SetReadBuffer(4096)
	}
	over := make(chan string, 1)
	if reads {
		go func() { over <- c.farewell() }()
	}
	if f.first != nil {
		_ = c.send(open(1, f.first[1] == "GET", raw(f.first...)))
	}
	var sent int64
	var batch []byte
	var err error
	for i := uint32(0); sent < attackBytes && err == nil; i++ {
		if batch = append(batch, f.make(i)...); len(batch) < 4000 {
			continue
		}
		// A proxy that stops reading because nobody reads it has stopped the flood, too. One that is read has no reason to.
		_ = c.nc.SetWriteDeadline(time.Now().Add(map[bool]time.Duration{false: 200 * time.Millisecond, true: patience}[reads]))
		var n int
		n, err = c.nc.Write(batch)
		sent += int64(n)
		batch = batch[:0]
		if l.pace != nil && !l.pace(n) {
			break
		}
	}
	if err == nil && !f.endless && !reads && l.pace == nil {
		// All of it fitted into the buffers on the way: the end follows, or the proxy reads no more, as nobody reads it.
		_ = c.nc.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		for err == nil {
			_, err = c.nc.Write(frame(http2.FramePing, 0, 0, make([]byte, 8)))
		}
	}
	if reads && !f.endless && l.pace == nil {
		if why := <-over; why != http2.ErrCodeEnhanceYourCalm.String() && !strings.Contains(why, "reset") {
			l.t.Errorf("the connection ended with %s after %d KB", why, sent>>10)
		}
	}
	_ = c.nc.Close()
	if reads && (f.endless || l.pace != nil) {
		<-over
	}
	for id, a := range c.got {
		// None of these is a request that anybody should have seen; those with unique names are.
		if a.status == 200 && !f.endless && id > 1 && !strings.Contains(f.name, "answered") {
			l.t.Errorf("stream %d was answered with 200", id)
		}
	}
	return sent
}

// Whatever is opened and reset, the endpoint never has more to do at once than the streams that a client may have.
func TestResetsBoundUpstreamWork(t *testing.T) {
	var now, most atomic.Int32
	o := newOrigin(t, func(m *message, nc net.Conn, _ *bufio.Reader) verdict {
		if m.target != "/hold" {
			return proceed
		}
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		_, _ = io.Copy(io.Discard, nc)
		now.Add(-1)
		return done
	})
	l := newLab(t, o.addr, config(func(c *conn.Config) { c.MaxStreams = 10 }))
	f := flood{make: func(i uint32) []byte { return append(open(id(i), false, raw(hold...)), reset(id(i))...) }}
	f.run(l, true)
	for now.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	// A request that was given up is at the endpoint until it sees the end of its connection.
	if n := most.Load(); n > 20 {
		t.Errorf("%d requests were at the endpoint at once", n)
	}
}

// Responses that nobody reads are not read from the endpoint either.
func TestUnreadResponses(t *testing.T) {
	const size = 2 << 20
	var asked, written atomic.Int64
	o := newOrigin(t, func(m *message, nc net.Conn, _ *bufio.Reader) verdict {
		if m.target != "/big" {
			return proceed
		}
		asked.Add(1)
		_ = nc.(*net.TCPConn).SetWriteBuffer(16 << 10)
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ncontent-length: 2097152\r\n\r\n")
		piece := make([]byte, 16<<10)
		for sent := 0; sent < size; sent += len(piece) {
			if _, err := nc.Write(piece); err != nil {
				return done
			}
			written.Add(int64(len(piece)))
		}
		return answered
	})
	small := config(func(c *conn.Config) { c.WriteTimeout = time.Second })
	for _, tt := range []struct {
		name   string
		window uint32
		give   bool // the connection's window is opened as well
	}{
		{"11 open windows, closed socket", 1<<31 - 1, true},
		{"14 closed windows", 0, false},
		{"14 a little window", 1000, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked.Store(0)
			written.Store(0)
			l := newLab(t, o.addr, small)
			l.siege(func() int64 {
				c := l.dialH2(setting(http2.SettingInitialWindowSize, tt.window)...)
				_ = c.nc.(*net.TCPConn).SetReadBuffer(4096)
				if tt.give {
					_ = c.send(frame(http2.FrameWindowUpdate, 0, 0, u32(1<<30)))
				}
				var sent int64
				for i := range uint32(90) {
					b := open(id(i), true, raw(":method", "GET", ":scheme", "http", ":path", "/big", ":authority", "a"))
					sent += int64(len(b))
					_ = c.send(b)
				}
				// It is over when the write timeout has freed all of it, though the client is still there.
				deadline := time.Now().Add(patience)
				for asked.Load() < 50 {
					if time.Now().After(deadline) {
						t.Errorf("only %d requests came to the endpoint", asked.Load())
						break
					}
					time.Sleep(time.Millisecond)
				}
				for l.px.Upstreams().Snapshot().Clusters[0].Requests > 1 {
					if time.Now().After(deadline) {
						t.Error("the endpoint's connections are still held")
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				_ = c.nc.Close()
				return sent
			})
			if n := written.Load(); n > 90*size/2 {
				t.Errorf("%d MB of %d were taken from the endpoint for a client that reads nothing", n>>20, 90*size>>20)
			}
		})
	}
	t.Run("14 HTTP/1", func(t *testing.T) {
		l := newLab(t, o.addr, small)
		l.siege(func() int64 {
			c := l.dial()
			_ = c.nc.SetReadBuffer(4096)
			c.send("GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
			waitClosed(t, c.nc)
			_ = c.nc.Close()
			return 100
		})
	})
}

// waitClosed waits until the other side has ended a connection on which it may have unread data for us.
func waitClosed(t testing.TB, nc *net.TCPConn) {
	t.Helper()
	for by := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := nc.Write([]byte("\r\n")); err != nil {
			return
		}
		if time.Now().After(by) {
			t.Error("the connection is still open")
			return
		}
	}
}

// A body in frames of one byte, either way, costs a buffer and no more.
func TestOneByteFrames(t *testing.T) {
	o := newOrigin(t, func(m *message, nc net.Conn, _ *bufio.Reader) verdict {
		if m.target != "/drip" {
			return proceed
		}
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
		for range 300 {
			_, _ = io.WriteString(nc, strings.Repeat("1\r\nx\r\n", 100))
		}
		_, _ = io.WriteString(nc, "0\r\n\r\n")
		return answered
	})
	l := newLab(t, o.addr)
	const size = 100_000
	l.siege(func() int64 {
		c := l.dialH2()
		_ = c.send(open(1, false, raw(":method", "POST", ":scheme", "http", ":path", "/up", ":authority", "a")))
		go func() {
			one := bytes.Repeat(data(1, false, "x"), 1000)
			for range size / 1000 {
				if c.send(one) != nil {
					return
				}
			}
			_ = c.send(data(1, true, ""))
		}()
		if a := c.until(1); a.String() != "200" {
			t.Errorf("the answer is %v, the connection ended with %v", a, c.away)
		}
		_ = c.nc.Close()
		return size * 10
	})
	for _, m := range o.take() {
		if m.target == "/up" && len(m.body) != size {
			t.Errorf("the origin got %d bytes", len(m.body))
		}
	}
	c := l.dialH2(setting(http2.SettingInitialWindowSize, 1<<20)...)
	_ = c.send(open(1, true, raw(":method", "GET", ":scheme", "http", ":path", "/drip", ":authority", "a")))
	if a := c.until(1); a.String() != "200" || len(a.body) != 30_000 {
		t.Errorf("the answer is %v with %d bytes", a, len(a.body))
	}
}

// Resetting all open streams at once, over and over, ends what the endpoint does for them.
func TestManyOpenStreamsAreReset(t *testing.T) {
	o := newOrigin(t, slow)
	l := newLab(t, o.addr)
	l.siege(func() (sent int64) {
		for range 5 {
			c := l.dialH2()
			var opens, resets []byte
			for i := range uint32(100) {
				opens = append(opens, open(id(i), false, raw(hold...))...)
				resets = append(resets, reset(id(i))...)
			}
			_ = c.send(opens)
			_ = c.send(resets)
			// Until the endpoint's side has ended too, they count against the limit.
			for i := uint32(500); ; i++ {
				_ = c.send(open(id(i), true, raw(get...)))
				if a := c.until(id(i)); a.String() == "200" {
					break
				} else if a.String() != http2.ErrCodeRefusedStream.String() {
					t.Errorf("the request after them got %v", a)
					break
				}
			}
			_ = c.nc.Close()
			sent += int64(len(opens) + len(resets))
		}
		return sent
	})
}

// Header blocks that are begun and never ended, and connections that say little, are closed when their time is up.
func TestStalledConnections(t *testing.T) {
	preface := http2.ClientPreface + string(frame(http2.FrameSettings, 0, 0, nil))
	stalls := []struct{ name, send string }{
		{"30 half a block", preface + string(frame(http2.FrameHeaders, 0, 1, raw(get...)))},
		{"30 half a frame", preface + string(frame(http2.FrameHeaders, 4, 1, raw(get...))[:20])},
		{"145 half a preface", preface[:20]},
		{"145 a preface", preface[:24]},
		{"145 half a head", "GET / HTTP/1.1\r\nhost: a\r\n"},
		{"145 half a request line", "GE"},
		{"145 nothing", ""},
		{"145 half a body", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"},
		{"145 half a chunk", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc"},
		{"145 half an HTTP/2 body", preface + string(open(1, false, raw(post...))) + string(data(1, false, "abc"))},
	}
	o := newOrigin(t, nil)
	l := newLab(t, o.addr, config(func(c *conn.Config) { c.HeadTimeout, c.Idle = time.Second, 2*time.Second }))
	l.siege(func() (sent int64) {
		var all []*peer
		for i := range 20 * len(stalls) {
			c := l.dial()
			c.send(stalls[i%len(stalls)].send)
			sent += int64(len(stalls[i%len(stalls)].send))
			all = append(all, c)
		}
		for i, c := range all {
			if !c.ended() {
				t.Errorf("%s: the connection is still open", stalls[i%len(stalls)].name)
			}
			_ = c.nc.Close()
		}
		return sent
	})
}

// A client that breaks the protocol while the proxy drains does not hold up the drain.
func TestErrorDuringDrain(t *testing.T) {
	for name, wrong := range map[string][]byte{
		"bad frame":  frame(http2.FramePing, 0, 0, nil),
		"bad block":  frame(http2.FrameHeaders, 4, 3, bytes.Repeat([]byte{0xff}, 8)),
		"bad window": frame(http2.FrameWindowUpdate, 0, 0, u32(0)),
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, slow)
			l := newLab(t, o.addr)
			c := l.dialH2()
			_ = c.send(open(1, false, raw(hold...)))
			over := make(chan struct{})
			go func() {
				defer close(over)
				l.px.Drain(t.Context())
			}()
			for !l.px.Status().Draining {
				runtime.Gosched()
			}
			_ = c.send(wrong)
			if why := c.farewell(); c.away == nil {
				t.Errorf("the connection ended with %s", why)
			}
			select {
			case <-over:
			case <-time.After(patience):
				t.Error("the drain does not end")
			}
		})
	}
}

// Where nothing can be sent, nothing is done: processor time stands still while windows and sockets are closed.
func TestClosedWindowsDoNotSpin(t *testing.T) {
	o := newOrigin(t, func(m *message, nc net.Conn, _ *bufio.Reader) verdict {
		if m.target != "/big" {
			return proceed
		}
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n")
		_, _ = nc.Write(make([]byte, 10_000_000))
		return answered
	})
	l := newLab(t, o.addr)
	c := l.dialH2(setting(http2.SettingInitialWindowSize, 1<<20)...)
	_ = c.nc.(*net.TCPConn).SetReadBuffer(4096)
	for i := range uint32(20) {
		_ = c.send(open(id(i), true, raw(":method", "GET", ":scheme", "http", ":path", "/big", ":authority", "a")))
	}
	for range 20 { // windows open and close again while the output is full
		_ = c.send(frame(http2.FrameWindowUpdate, 0, 0, u32(30_000)), frame(http2.FrameSettings, 0, 0, setting(http2.SettingInitialWindowSize, 0)),
			frame(http2.FrameSettings, 0, 0, setting(http2.SettingInitialWindowSize, 1<<20)))
	}
	// Filling all buffers takes as long as the machine likes; after that a moment has to come in which nothing is done. A loop that
	// spins never has one.
	const moment = 200 * time.Millisecond
	before := cpuTime(t)
	for start := time.Now(); ; {
		time.Sleep(moment)
		now := cpuTime(t)
		spent := now - before
		if spent < moment/5 {
			return
		}
		if time.Since(start) > patience {
			t.Fatalf("%v of processor time in the last %v, though nothing can be sent since %v", spent, moment, time.Since(start))
		}
		before = now
	}
}
