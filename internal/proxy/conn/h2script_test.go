package conn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// script is the other end of a connection, frame by frame.
type script struct {
	t   *testing.T
	nc  net.Conn
	enc *h2.Encoder
}

// scriptClient talks to ServeH2.
func scriptClient(t *testing.T, h Handler, cfg *Config) *script {
	t.Helper()
	nc, err := net.Dial("tcp", listenH2(t, h, cfg, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	s := &script{t: t, nc: nc, enc: h2.NewEncoder()}
	s.send([]byte(h2.Preface), frame(h2.SettingsType, 0, 0, nil))
	return s
}

// scriptServer talks to an H2Client.
func scriptServer(t *testing.T, cfg *Config) (*script, *H2Client, <-chan error) {
	t.Helper()
	checkGoroutines(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := NewH2Client(near, cfg)
	over := make(chan error, 1)
	go func() { over <- c.Run() }()
	t.Cleanup(func() {
		_ = far.Close()
		c.CloseConn()
		<-c.Done()
	})
	_ = far.SetDeadline(time.Now().Add(time.Minute))
	s := &script{t: t, nc: far, enc: h2.NewEncoder()}
	if _, err := io.ReadFull(far, make([]byte, len(h2.Preface))); err != nil {
		t.Fatal(err)
	}
	return s, c, over
}

func frame(typ h2.FrameType, flags h2.Flags, id uint32, p []byte) []byte {
	return append(h2.AppendFrameHeader(nil, h2.FrameHeader{Length: uint32(len(p)), Type: typ, Flags: flags, StreamID: id}), p...)
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func setting(id uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, id), v)
}

// send writes and does not mind a connection that is gone: what the other side said is looked at afterwards.
func (s *script) send(frames ...[]byte) {
	_, _ = s.nc.Write(bytes.Join(frames, nil))
}

// get is a request without a body.
func (s *script) get(id uint32) []byte {
	b := h2.BeginHeaders(nil)
	b = s.enc.Request(b, request("GET", "/"))
	return h2.EndHeaders(b, 0, id, true, h2.MinMaxFrame)
}

func (s *script) post(id uint32, length int64) []byte {
	b := h2.BeginHeaders(nil)
	r := request("POST", "/")
	r.Length = length
	b = s.enc.Request(b, r)
	return h2.EndHeaders(b, 0, id, false, h2.MinMaxFrame)
}

func (s *script) status(id uint32, status int, end bool, fields ...message.Field) []byte {
	b := h2.BeginHeaders(nil)
	b = s.enc.Response(b, &message.Response{Status: status, Length: message.Unknown, Fields: fields})
	return h2.EndHeaders(b, 0, id, end, h2.MinMaxFrame)
}

// expect reads frames until one of a type, with a stream number unless id is 0, and returns its payload.
func (s *script) expect(typ h2.FrameType, id uint32) []byte {
	s.t.Helper()
	for {
		h, p, err := s.next()
		if err != nil {
			s.t.Fatalf("waiting for frame type %d: %v", typ, err)
		}
		if h.Type == typ && (id == 0 || h.StreamID == id) && (typ != h2.SettingsType || !h.Has(h2.FlagAck)) {
			return p
		}
	}
}

func (s *script) next() (h2.FrameHeader, []byte, error) {
	var b [h2.FrameHeaderLen]byte
	if _, err := io.ReadFull(s.nc, b[:]); err != nil {
		return h2.FrameHeader{}, nil, err
	}
	h := h2.ParseFrameHeader(b[:])
	p := make([]byte, h.Length)
	_, err := io.ReadFull(s.nc, p)
	return h, p, err
}

// goAway reads the GOAWAY that ends the connection. One that only announces the end (RFC 9113 section 6.8) may come before.
func (s *script) goAway(want h2.ErrCode) {
	s.t.Helper()
	last, code := h2.ParseGoAway(s.expect(h2.GoAway, 0))
	if last == h2.MaxWindow && code == h2.NoError && want != h2.NoError {
		_, code = h2.ParseGoAway(s.expect(h2.GoAway, 0))
	}
	if code != want {
		s.t.Errorf("GOAWAY %v, want %v", code, want)
	}
}

func (s *script) reset(id uint32, want h2.ErrCode) {
	s.t.Helper()
	if code := h2.ParseReset(s.expect(h2.RSTStream, id)); code != want {
		s.t.Errorf("RST_STREAM %v, want %v", code, want)
	}
}

// flood sends what make returns until the connection says GOAWAY with a code, and no more than limit times.
func (s *script) flood(want h2.ErrCode, limit int, make func(i int) []byte) {
	s.t.Helper()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		var batch []byte
		for i := range limit {
			if batch = append(batch, make(i)...); len(batch) < 1000 {
				continue
			}
			if _, err := s.nc.Write(batch); err != nil {
				return
			}
			batch = batch[:0]
		}
		_, _ = s.nc.Write(batch)
	})
	s.goAway(want)
}

// wait serves nothing until the client is gone.
func wait(d stream.Downstream, _ *Peer) {
	for {
		if _, err := d.ReadBody(); err != nil && !errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			_ = d.WriteHead(&message.Response{Status: 200}, true)
			return
		}
	}
}

// tight has budgets that a test spends quickly, and none that time gives back.
func tight() *Config {
	cfg := Defaults()
	cfg.H2Resets, cfg.H2ResetRate, cfg.H2Oddities, cfg.H2OddityRate, cfg.H2Queued = 50, 0, 100, 0, 100
	return cfg
}

func TestH2ServerFloods(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first func(s *script) []byte
		make  func(s *script, i int) []byte
	}{
		{name: "rapid reset, CVE-2023-44487", make: func(s *script, i int) []byte {
			id := uint32(2*i + 1)
			return append(s.post(id, -1), frame(h2.RSTStream, 0, id, u32(8))...)
		}},
		{name: "resets that we are made to send, CVE-2025-8671: WINDOW_UPDATE of 0", make: func(s *script, i int) []byte {
			id := uint32(2*i + 1)
			return append(s.post(id, -1), frame(h2.WindowUpdate, 0, id, u32(0))...)
		}},
		{name: "CVE-2025-8671: window overflow", make: func(s *script, i int) []byte {
			id := uint32(2*i + 1)
			return append(s.post(id, -1), frame(h2.WindowUpdate, 0, id, u32(1<<31-1))...)
		}},
		{name: "CVE-2025-8671: self-dependence", make: func(s *script, i int) []byte {
			id := uint32(2*i + 1)
			return append(s.post(id, -1), frame(h2.Priority, 0, id, append(u32(id), 0))...)
		}},
		{name: "CVE-2025-8671: DATA over the length", make: func(s *script, i int) []byte {
			id := uint32(2*i + 1)
			return append(s.post(id, 1), frame(h2.Data, 0, id, []byte("ab"))...)
		}},
		{name: "malformed requests, CVE-2019-9514", make: func(_ *script, i int) []byte {
			return frame(h2.Headers, h2.FlagEndHeaders|h2.FlagEndStream, uint32(2*i+1), []byte{0x82})
		}},
		{name: "CONTINUATION, CVE-2024-27919", first: func(*script) []byte { return frame(h2.Headers, 0, 1, nil) }, make: func(*script, int) []byte {
			return frame(h2.Continuation, 0, 1, bytes.Repeat([]byte{0x82}, 1000))
		}},
		{name: "empty CONTINUATION", first: func(*script) []byte { return frame(h2.Headers, 0, 1, nil) }, make: func(*script, int) []byte {
			return frame(h2.Continuation, 0, 1, nil)
		}},
		{name: "PING, CVE-2019-9512", make: func(*script, int) []byte { return frame(h2.Ping, 0, 0, make([]byte, 8)) }},
		{name: "SETTINGS, CVE-2019-9515", make: func(*script, int) []byte { return frame(h2.SettingsType, 0, 0, nil) }},
		{name: "PRIORITY, CVE-2019-9513", make: func(_ *script, i int) []byte { return frame(h2.Priority, 0, uint32(2*i+1), make([]byte, 5)) }},
		{name: "empty DATA, CVE-2019-9518", first: func(s *script) []byte { return s.post(1, -1) }, make: func(*script, int) []byte {
			return frame(h2.Data, 0, 1, nil)
		}},
		{name: "WINDOW_UPDATE, CVE-2019-9511", first: func(s *script) []byte { return s.post(1, -1) }, make: func(*script, int) []byte {
			return frame(h2.WindowUpdate, 0, 1, u32(1))
		}},
		{name: "unknown frames, CVE-2026-27141", make: func(_ *script, i int) []byte {
			return frame(h2.FrameType(0x0a+i%0xf0), h2.Flags(i), uint32(i), make([]byte, i%100))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := scriptClient(t, handlerFunc(wait), tight())
			if tt.first != nil {
				s.send(tt.first(s))
			}
			s.flood(h2.EnhanceYourCalm, 5000, func(i int) []byte { return tt.make(s, i) })
		})
	}
}

// Requests that come with their own reset, in one piece, never reach the handler; their streams are free again.
func TestH2ServerResetInOneBreath(t *testing.T) {
	var served atomic.Int32
	s := scriptClient(t, handlerFunc(func(d stream.Downstream, p *Peer) {
		served.Add(1)
		echo(d, p)
	}), Defaults())
	var burst []byte
	for i := range uint32(50) {
		burst = append(append(burst, s.post(2*i+1, -1)...), frame(h2.RSTStream, 0, 2*i+1, u32(8))...)
	}
	s.send(burst)
	for i := range uint32(100) { // as many as may be open
		s.send(s.get(2*i + 101))
	}
	for range 100 {
		s.expect(h2.Headers, 0)
	}
	if n := served.Load(); n != 100 {
		t.Errorf("%d requests were served", n)
	}
}

// A client that spends three quarters of what is tolerated is told to go, and what it has asked for is still served; at four
// quarters the connection ends.
func TestH2ServerTiresOfOddities(t *testing.T) {
	cfg := Defaults()
	cfg.H2Oddities, cfg.H2OddityRate, cfg.DrainIdle = 100, 0, time.Minute
	s := scriptClient(t, handlerFunc(echo), cfg)
	s.send(s.post(1, -1))
	odd := frame(h2.FrameType(0x42), 0, 0, nil)
	s.send(bytes.Repeat(odd, 70)) // a request gives ten back at most
	s.send(frame(h2.Data, 0, 1, []byte("x")))
	s.expect(h2.Data, 1)
	s.send(bytes.Repeat(odd, 20))
	if last, code := h2.ParseGoAway(s.expect(h2.GoAway, 0)); last != h2.MaxWindow || code != h2.NoError {
		t.Errorf("GOAWAY %d, %v", last, code)
	}
	s.send(frame(h2.Data, h2.FlagEndStream, 1, []byte("y")))
	if p := s.expect(h2.Data, 1); string(p) != "y" {
		t.Errorf("what was asked before got %q", p)
	}
	s.send(bytes.Repeat(odd, 30))
	if _, code := h2.ParseGoAway(s.expect(h2.GoAway, 0)); code != h2.EnhanceYourCalm {
		t.Errorf("the end is %v", code)
	}
}

// What does no harm is let through, and a reset of a complete exchange costs nothing.
func TestH2ServerTolerates(t *testing.T) {
	s := scriptClient(t, handlerFunc(echo), tight())
	for i := range 200 {
		id := uint32(2*i + 1)
		s.send(s.get(id), frame(0x4d, 0xff, id, []byte("metadata")), frame(h2.Priority, 0, id+100, make([]byte, 5)))
		s.expect(h2.Headers, id)
		s.send(frame(h2.WindowUpdate, 0, id, u32(1)))
	}
}

func TestH2ServerRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string // with the section of RFC 9113
		send func(s *script) []byte
		id   uint32 // 0: the connection
		code h2.ErrCode
	}{
		{"8.1 trailers without END_STREAM", func(s *script) []byte { return append(s.post(1, -1), s.post(1, -1)...) }, 1, h2.ProtocolError},
		{"8.1.1 less DATA than content-length", func(s *script) []byte {
			return append(s.post(1, 5), frame(h2.Data, h2.FlagEndStream, 1, []byte("abc"))...)
		}, 1, h2.ProtocolError},
		{"8.1.1 more DATA than content-length", func(s *script) []byte { return append(s.post(1, 2), frame(h2.Data, 0, 1, []byte("abc"))...) }, 1, h2.ProtocolError},
		{"5.1 DATA after END_STREAM", func(s *script) []byte { return append(s.get(1), frame(h2.Data, 0, 1, []byte("abc"))...) }, 1, h2.StreamClosed},
		{"5.1 DATA on an idle stream", func(*script) []byte { return frame(h2.Data, 0, 1, nil) }, 0, h2.ProtocolError},
		{"5.1 RST_STREAM on an idle stream", func(*script) []byte { return frame(h2.RSTStream, 0, 1, u32(8)) }, 0, h2.ProtocolError},
		{"5.1.1 even stream", func(s *script) []byte { return s.get(2) }, 0, h2.ProtocolError},
		{"5.1.1 numbers go down", func(s *script) []byte { return append(s.get(5), s.get(3)...) }, 0, h2.ProtocolError},
		{"4.3 bad block", func(*script) []byte {
			return frame(h2.Headers, h2.FlagEndHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		}, 0, h2.CompressionError},
		{"4.2 frame too long", func(*script) []byte {
			return h2.AppendFrameHeader(nil, h2.FrameHeader{Length: h2.MinMaxFrame + 1, Type: 0x42})
		}, 0, h2.FrameSizeError},
		{"6.6 PUSH_PROMISE", func(*script) []byte { return frame(h2.PushPromise, h2.FlagEndHeaders, 1, u32(2)) }, 0, h2.ProtocolError},
		{"6.10 DATA inside a block", func(s *script) []byte { return append(frame(h2.Headers, 0, 1, nil), frame(h2.Data, 0, 1, nil)...) }, 0, h2.ProtocolError},
		{"6.10 CONTINUATION alone", func(*script) []byte { return frame(h2.Continuation, h2.FlagEndHeaders, 1, nil) }, 0, h2.ProtocolError},
		{"6.9.1 connection window overflows", func(*script) []byte { return frame(h2.WindowUpdate, 0, 0, u32(1<<31-1)) }, 0, h2.FlowControlError},
		{"6.5.2 bad setting", func(*script) []byte { return frame(h2.SettingsType, 0, 0, setting(4, 1<<31)) }, 0, h2.FlowControlError},
		{"6.9.2 settings overflow a window", func(s *script) []byte {
			return append(append(s.post(1, -1), frame(h2.WindowUpdate, 0, 1, u32(1<<31-1-65535))...), frame(h2.SettingsType, 0, 0, setting(4, 1<<20))...)
		}, 0, h2.FlowControlError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := scriptClient(t, handlerFunc(wait), Defaults())
			s.send(tt.send(s))
			if tt.id == 0 {
				s.goAway(tt.code)
			} else {
				s.reset(tt.id, tt.code)
			}
		})
	}
}

func TestH2ServerWindowsAreEnforced(t *testing.T) {
	cfg := Defaults()
	cfg.StreamWindow = 1000
	block := make(chan struct{})
	s := scriptClient(t, handlerFunc(func(stream.Downstream, *Peer) { <-block }), cfg)
	defer close(block)
	s.send(s.post(1, -1), frame(h2.Data, 0, 1, make([]byte, 1000)), frame(h2.Data, 0, 1, []byte{0}))
	s.reset(1, h2.FlowControlError)
	cfg.StreamWindow = 1 << 20
}

// The number of handlers that run is bounded, whatever the client resets.
func TestH2ServerConcurrency(t *testing.T) {
	cfg := Defaults()
	cfg.MaxStreams = 5
	var mu sync.Mutex
	running, most := 0, 0
	block := make(chan struct{})
	s := scriptClient(t, handlerFunc(func(stream.Downstream, *Peer) {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		<-block
		mu.Lock()
		running--
		mu.Unlock()
	}), cfg)
	defer close(block)
	for i := range 20 {
		id := uint32(2*i + 1)
		s.send(s.post(id, -1))
		for busy := i < 5; busy; time.Sleep(time.Millisecond) { // one that is reset before its handler runs takes no place
			mu.Lock()
			busy = running <= i
			mu.Unlock()
		}
		s.send(frame(h2.RSTStream, 0, id, u32(8)))
	}
	s.reset(39, h2.RefusedStream)
	mu.Lock()
	defer mu.Unlock()
	if most > 5 {
		t.Errorf("%d handlers ran at once", most)
	}
}

func TestH2ServerHeadTooLarge(t *testing.T) {
	s := scriptClient(t, handlerFunc(echo), Defaults())
	b := h2.BeginHeaders(nil)
	b = s.enc.Request(b, request("GET", "/", field("x", strings.Repeat("y", 70_000))))
	s.send(h2.EndHeaders(b, 0, 1, true, h2.MinMaxFrame))
	var a h2.Arena
	var r message.Response
	dec := h2.NewDecoder(h2.InitialTable, h2.Limits{Bytes: 10000, Fields: 10})
	if err := dec.Response(s.expect(h2.Headers, 1), true, false, &a, &r); err != nil || r.Status != 431 {
		t.Errorf("%d, %v", r.Status, err)
	}
	s.send(s.get(3))
	s.expect(h2.Headers, 3)
}

func TestH2ServerContinue(t *testing.T) {
	s := scriptClient(t, handlerFunc(wait), Defaults())
	r := request("POST", "/")
	r.Length, r.ExpectContinue = 2, true
	b := s.enc.Request(h2.BeginHeaders(nil), r)
	s.send(h2.EndHeaders(b, 0, 1, false, h2.MinMaxFrame))
	dec := h2.NewDecoder(h2.InitialTable, h2.Limits{Bytes: 10000, Fields: 10})
	var a h2.Arena
	var res message.Response
	if err := dec.Response(s.expect(h2.Headers, 1), false, false, &a, &res); err != nil || res.Status != 100 {
		t.Fatalf("%d, %v", res.Status, err)
	}
	s.send(frame(h2.Data, h2.FlagEndStream, 1, []byte("ab")))
	res.Reset()
	if err := dec.Response(s.expect(h2.Headers, 1), false, false, &a, &res); err != nil || res.Status != 200 {
		t.Fatalf("%d, %v", res.Status, err)
	}
}

// A server that misbehaves costs one connection or one stream, and the caller learns whether it may try elsewhere.
func TestH2ClientAgainstBadServers(t *testing.T) {
	type step func(s *script)
	settings := func(p []byte) step { return func(s *script) { s.send(frame(h2.SettingsType, 0, 0, p)) } }
	for _, tt := range []struct {
		name  string
		hello step // before the request was read
		then  step // after it
		head  error
		body  error
	}{
		{name: "MAX_FRAME_SIZE 0, CVE-2026-33814", hello: settings(setting(5, 0)), head: stream.ErrReset},
		{name: "MAX_FRAME_SIZE too large", hello: settings(setting(5, 1<<24)), head: stream.ErrReset},
		{name: "INITIAL_WINDOW_SIZE too large", hello: settings(setting(4, 1<<31)), head: stream.ErrReset},
		{name: "ENABLE_PUSH of a server", hello: settings(setting(2, 1)), head: stream.ErrReset},
		{name: "no SETTINGS", hello: func(s *script) { s.send(frame(h2.Ping, 0, 0, make([]byte, 8))) }, head: stream.ErrReset},
		{name: "HTTP/1", hello: func(s *script) { s.send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, head: stream.ErrReset},
		{name: "PUSH_PROMISE", hello: settings(nil), then: func(s *script) { s.send(frame(h2.PushPromise, h2.FlagEndHeaders, 1, u32(2))) }, head: stream.ErrReset},
		{name: "REFUSED_STREAM", hello: settings(nil), then: func(s *script) { s.send(frame(h2.RSTStream, 0, 1, u32(7))) }, head: stream.ErrRefused},
		{name: "CANCEL", hello: settings(nil), then: func(s *script) { s.send(frame(h2.RSTStream, 0, 1, u32(8))) }, head: stream.ErrReset},
		{name: "GOAWAY below", hello: settings(nil), then: func(s *script) { s.send(h2.AppendGoAway(nil, 0, h2.NoError, "")) }, head: stream.ErrRefused},
		{name: "GOAWAY and MAX_CONCURRENT_STREAMS 0, CVE-2021-32780", hello: settings(nil), then: func(s *script) {
			s.send(h2.AppendGoAway(nil, 0, h2.NoError, ""), frame(h2.SettingsType, 0, 0, setting(3, 0)))
		}, head: stream.ErrRefused},
		{name: "GOAWAY above", hello: settings(nil), then: func(s *script) {
			s.send(h2.AppendGoAway(nil, 1, h2.NoError, ""), s.status(1, 200, true))
		}, body: io.EOF},
		{name: "RST_STREAM and GOAWAY, CVE-2023-35945", hello: settings(nil), then: func(s *script) {
			s.send(frame(h2.RSTStream, 0, 1, u32(8)), h2.AppendGoAway(nil, 1, h2.NoError, ""))
		}, head: stream.ErrReset},
		{name: "DATA first", hello: settings(nil), then: func(s *script) { s.send(frame(h2.Data, 0, 1, []byte("x"))) }, head: stream.ErrProtocol},
		{name: "trailers without END_STREAM, CVE-2026-73513", hello: settings(nil), then: func(s *script) {
			s.send(s.status(1, 200, false), s.status(1, 200, false))
		}, body: stream.ErrProtocol},
		{name: "more than content-length", hello: settings(nil), then: func(s *script) {
			b := s.enc.Response(h2.BeginHeaders(nil), &message.Response{Status: 200, Length: 1, HasBody: true})
			s.send(h2.EndHeaders(b, 0, 1, false, h2.MinMaxFrame), frame(h2.Data, h2.FlagEndStream, 1, []byte("ab")))
		}, body: stream.ErrProtocol},
		{name: "less than content-length", hello: settings(nil), then: func(s *script) {
			b := s.enc.Response(h2.BeginHeaders(nil), &message.Response{Status: 200, Length: 2, HasBody: true})
			s.send(h2.EndHeaders(b, 0, 1, false, h2.MinMaxFrame), frame(h2.Data, h2.FlagEndStream, 1, []byte("a")))
		}, body: stream.ErrProtocol},
		{name: "RST_STREAM NO_ERROR after the response", hello: settings(nil), then: func(s *script) {
			s.send(s.status(1, 200, false), frame(h2.Data, h2.FlagEndStream, 1, []byte("a")), frame(h2.RSTStream, 0, 1, u32(0)))
		}, body: io.EOF},
		{name: "informational heads without end", hello: settings(nil), then: func(s *script) {
			for range 5000 {
				s.send(s.status(1, 103, false))
			}
		}, head: stream.ErrReset},
		{name: "close", hello: settings(nil), then: func(s *script) { _ = s.nc.Close() }, head: stream.ErrReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, c, _ := scriptServer(t, tight())
			u, err := c.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			u.SetReadDeadline(time.Now().Add(time.Minute))
			tt.hello(s)
			if err := u.WriteHead(request("GET", "/"), true); err == nil && tt.then != nil {
				s.expect(h2.Headers, 1)
				tt.then(s)
			}
			var res message.Response
			for res.Status < 200 && err == nil {
				err = u.ReadHead(&res)
			}
			for err == nil {
				_, err = u.ReadBody()
			}
			want := tt.head
			if want == nil {
				want = tt.body
			}
			if tt.then == nil && errors.Is(err, stream.ErrRefused) {
				err = stream.ErrReset // the connection was over before the request was written
			}
			if !errors.Is(err, want) || (res.Status == 200) != (tt.head == nil) {
				t.Errorf("status %d, %v; want %v", res.Status, err, want)
			}
		})
	}
}

// A server that answered may want no more of the request and say so with RST_STREAM (RFC 9113 section 8.1), while the end of the
// request is on its way: then the stream is closed already, and other streams of the connection must not suffer. So it is with WINDOW_UPDATE,
// of one that reads on after its answer.
func TestH2ClientIgnoresWhatCrossedTheEnd(t *testing.T) {
	s, c, _ := scriptServer(t, tight())
	s.send(frame(h2.SettingsType, 0, 0, nil))
	for id := uint32(1); id <= 5; id += 2 {
		u, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		u.SetReadDeadline(time.Now().Add(time.Minute))
		if err := u.WriteHead(request("GET", "/"), true); err != nil {
			t.Fatal(err)
		}
		s.expect(h2.Headers, id)
		if id > 1 {
			s.send(h2.AppendWindowUpdate(nil, id-2, 1), frame(h2.RSTStream, 0, id-2, u32(0)))
		}
		s.send(s.status(id, 200, true))
		var res message.Response
		if err := u.ReadHead(&res); err != nil || res.Status != 200 {
			t.Fatalf("stream %d: %d, %v", id, res.Status, err)
		}
		u.Close()
	}
}

// What streams took of the memory comes back with the end of their connection, also where nobody ever served them.
func TestH2ServerGivesMemoryBack(t *testing.T) {
	cfg := tight()
	cfg.Memory = NewMemory(1 << 30)
	s := scriptClient(t, handlerFunc(wait), cfg)
	s.send(s.get(1))
	s.expect(h2.Headers, 1)                                                                                       // what comes next is in a read of its own
	s.send(s.post(3, -1), frame(h2.Data, 0, 3, []byte("nobody reads this")), s.get(5), frame(h2.Data, 0, 0, nil)) // the last one ends it
	s.goAway(h2.ProtocolError)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		bodies, _ := cfg.Memory.Bodies()
		if cfg.Memory.taken.Load() == 0 && bodies == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes count as taken, and %d as waiting, with no connection open", cfg.Memory.taken.Load(), bodies)
		}
	}
}

// A stream that was opened, and not begun, before the connection was left is refused: its frames would be ignored, and the request would
// wait for an answer until its time is over.
func TestH2ClientIsLeft(t *testing.T) {
	for _, last := range []uint32{0, h2.MaxWindow} {
		s, c, _ := scriptServer(t, tight())
		u, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		s.send(frame(h2.SettingsType, 0, 0, nil), h2.AppendGoAway(nil, last, h2.NoError, ""))
		for end := time.Now().Add(time.Minute); !c.Leaving(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the GOAWAY was not seen")
			}
		}
		if err := u.WriteHead(request("GET", "/"), true); errors.Is(err, stream.ErrRefused) != (last == 0) {
			t.Errorf("after GOAWAY(%d): %v", last, err)
		}
		u.Close()
	}
}

// Nor does one wait that needs the peer's SETTINGS when the connection ends before they come.
func TestH2ClientEndsBeforeSettings(t *testing.T) {
	_, c, _ := scriptServer(t, tight())
	u, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	r := request("GET", "/")
	r.Upgrade = []byte("websocket")
	u.SetReadDeadline(time.Now().Add(time.Minute))
	go func() {
		for waiting := 0; waiting == 0; time.Sleep(time.Millisecond) {
			c.c.mu.Lock()
			waiting = c.c.waiting
			c.c.mu.Unlock()
		}
		c.CloseConn()
	}()
	if err := u.WriteHead(r, false); !errors.Is(err, stream.ErrRefused) {
		t.Errorf("%v, want refused", err)
	}
}

// A connection that is about to end because it was idle takes no stream any more, whose request might be read and never answered.
func TestH2ClientIdleEnd(t *testing.T) {
	cfg := tight()
	cfg.UpstreamIdle, cfg.HeadTimeout = time.Hour, 10*time.Hour
	nc, _ := sockets(t)
	c := NewH2Client(nc, cfg) // this is its reading goroutine
	c.c.mu.Lock()
	err := c.c.tickLocked(time.Now().Add(2 * time.Hour))
	c.c.mu.Unlock()
	if err == nil {
		t.Fatal("an idle connection goes on")
	}
	if _, err := c.Open(); err == nil {
		t.Error("a stream was opened on a connection that ends")
	}
}

// A client keeps to what the server allows.
func TestH2ClientKeepsLimits(t *testing.T) {
	s, c, _ := scriptServer(t, Defaults())
	s.send(frame(h2.SettingsType, 0, 0, append(setting(3, 2), setting(4, 10)...)))
	for c.Free() != 2 {
		time.Sleep(time.Millisecond)
	}
	u, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := c.Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(); !errors.Is(err, stream.ErrRefused) {
		t.Errorf("a third stream: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		r := request("POST", "/")
		r.Length = 25
		if err := u.WriteHead(r, false); err != nil {
			done <- err
			return
		}
		done <- u.WriteBody(bytes.Repeat([]byte("x"), 25), true)
	}()
	for _, n := range []int{10, 10, 5} {
		if p := s.expect(h2.Data, 1); len(p) != n {
			t.Errorf("DATA of %d bytes, want %d", len(p), n)
		}
		s.send(frame(h2.WindowUpdate, 0, 1, u32(10)))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The window of a stream that was opened before SETTINGS came, and begun after them, is the one that SETTINGS gave: with a larger one
// the server ends the connection, and with a smaller one it waits for more before it gives any of it back.
func TestH2ClientStreamOpenedBeforeSettings(t *testing.T) {
	for _, window := range []uint32{10, 1 << 20} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			s, c, _ := scriptServer(t, Defaults())
			u, err := c.Open()
			if err != nil {
				t.Fatal(err)
			}
			s.send(frame(h2.SettingsType, 0, 0, setting(4, window)), h2.AppendWindowUpdate(nil, 0, 1<<20))
			for settled := false; !settled; time.Sleep(time.Millisecond) {
				c.c.mu.Lock()
				settled = c.c.settled && c.c.sendWin.Available() > 1<<20
				c.c.mu.Unlock()
			}
			sent := make(chan error, 1)
			go func() {
				r := request("POST", "/")
				r.Length = int64(window) + 1
				sent <- errors.Join(u.WriteHead(r, false), u.WriteBody(make([]byte, window+1), true))
			}()
			got := uint32(0)
			for got < window {
				got += uint32(len(s.expect(h2.Data, 1)))
			}
			s.send(h2.AppendWindowUpdate(nil, 1, 1))
			if rest := s.expect(h2.Data, 1); got != window || len(rest) != 1 {
				t.Errorf("%d bytes into a window of %d, and then %d", got, window, len(rest))
			}
			if err := <-sent; err != nil {
				t.Errorf("window of %d: %v", window, err)
			}
			u.Close()
		})
	}
}

// Endpoints may send twice as many fields as clients (--max-head-fields), over HTTP/2 as over HTTP/1: a proxy takes them from a program over
// the one and passes them on over the other.
func TestH2ClientTakesManyFields(t *testing.T) {
	cfg := Defaults()
	for n, want := range map[int]bool{2 * cfg.MaxFields: true, 2*cfg.MaxFields + 1: false} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s, c, _ := scriptServer(t, cfg)
			u, err := c.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if err := errors.Join(u.WriteHead(request("GET", "/"), true), u.Flush()); err != nil {
				t.Fatal(err)
			}
			s.expect(h2.Headers, 1)
			fields := make(message.Fields, n-1) // and the status
			for i := range fields {
				fields[i] = field("set-cookie", fmt.Sprint("c=", i))
			}
			s.send(frame(h2.SettingsType, 0, 0, nil), s.status(1, 200, true, fields...))
			var r message.Response
			u.SetReadDeadline(time.Now().Add(time.Minute))
			if err := u.ReadHead(&r); (err == nil) != want {
				t.Errorf("%d fields: %v", n, err)
			}
		})
	}
}

// The connection's window that a body took which nobody read is given back when its exchange is over, and not when the client, which may
// be waiting for just that, says something next.
func TestH2ServerGivesTheWindowBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		cfg := Defaults()
		cfg.ConnectionWindow = h2.InitialWindow
		came := make(chan struct{})
		answer := func(d stream.Downstream, _ *Peer) {
			<-came
			_ = d.WriteHead(&message.Response{Status: 403}, true)
		}
		var ends sync.WaitGroup
		ends.Go(func() { ServeH2(near, nil, &Peer{}, handlerFunc(answer), cfg, nil) })
		s := &script{t: t, nc: far, enc: h2.NewEncoder()}
		ends.Go(func() {
			s.send([]byte(h2.Preface), frame(h2.SettingsType, 0, 0, nil))
			for id := uint32(1); id < 9; id += 2 { // in sum more than half of the window, at which it is given back
				s.send(s.post(id, 10_000), frame(h2.Data, h2.FlagEndStream, id, make([]byte, 10_000)))
			}
			synctest.Wait()
			close(came)
		})
		began := time.Now()
		s.expect(h2.WindowUpdate, 0)
		if waited := time.Since(began); waited > 0 {
			t.Errorf("after %v", waited)
		}
		_ = far.Close()
		ends.Wait()
	})
}

// FuzzH2Server feeds frames to a server: it ends, whatever they are, and leaves no goroutine.
func FuzzH2Server(f *testing.F) {
	s := &script{enc: h2.NewEncoder()}
	f.Add(bytes.Join([][]byte{frame(h2.SettingsType, 0, 0, nil), s.get(1), s.post(3, 5), frame(h2.Data, h2.FlagEndStream, 3, []byte("12345"))}, nil))
	f.Add(bytes.Join([][]byte{frame(h2.SettingsType, 0, 0, setting(4, 5)), s.get(1), frame(h2.WindowUpdate, 0, 1, u32(7)), frame(h2.RSTStream, 0, 1, u32(8)), h2.AppendGoAway(nil, 0, 0, "")}, nil))
	f.Add(bytes.Join([][]byte{frame(h2.SettingsType, 0, 0, nil), frame(h2.Headers, 0, 1, []byte{0x82, 0x86}), frame(h2.Continuation, h2.FlagEndHeaders, 1, []byte{0x84}), frame(h2.Ping, 0, 0, make([]byte, 8))}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		over := make(chan struct{})
		go func() {
			defer close(over)
			ServeH2(near, []byte(h2.Preface), &Peer{}, handlerFunc(echo), Defaults(), nil)
		}()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		_ = far.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = far.Write(b)
		_ = far.Close()
		select {
		case <-over:
		case <-time.After(time.Minute):
			t.Fatal("the server did not end")
		}
	})
}
