package h2

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// FuzzFrames cuts bytes into frames as a connection does: no payload is read beyond its frame, padding and priority never
// make one longer, and what is written again is read as the same.
func FuzzFrames(f *testing.F) {
	f.Add(AppendData(nil, 1, []byte("hello"), true))
	f.Add(AppendReset(nil, 3, Cancel))
	f.Add(AppendWindowUpdate(nil, 0, 1<<31-1))
	f.Add(AppendPing(nil, false, [8]byte{1}))
	f.Add(AppendGoAway(nil, 5, ProtocolError, "because"))
	f.Add(append(AppendFrameHeader(nil, FrameHeader{Length: 3, Type: Data, Flags: FlagPadded, StreamID: 1}), 2, 0, 0))
	f.Add(append(AppendFrameHeader(nil, FrameHeader{Length: 4, Type: Headers, Flags: FlagPriority, StreamID: 1}), 0, 0, 0, 1))
	f.Add(append(AppendFrameHeader(nil, FrameHeader{Length: 7, Type: Headers, Flags: FlagPriority | FlagPadded, StreamID: 1}), 1, 0, 0, 0, 1, 9, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) >= FrameHeaderLen {
			h := ParseFrameHeader(b)
			if back := AppendFrameHeader(nil, h); !bytes.Equal(back[:5], b[:5]) || !bytes.Equal(back[6:], b[6:9]) || back[5] != b[5]&0x7f {
				t.Fatalf("%x is written as %x", b[:9], back)
			}
			b = b[FrameHeaderLen:]
			err := h.Check(MinMaxFrame)
			var fatal ConnError
			if errors.As(err, &fatal) || uint32(len(b)) < h.Length {
				return
			}
			payload := b[:h.Length:h.Length]
			b = b[h.Length:]
			if err != nil {
				continue
			}
			switch h.Type {
			case Data:
				if p, err := h.Unpad(payload); err == nil && len(p) > len(payload) {
					t.Fatalf("%+v: %d bytes of %d", h, len(p), len(payload))
				}
			case Headers:
				p, err := h.Fragment(payload)
				if errors.As(err, &fatal) {
					continue
				}
				if n := len(payload); len(p) > n || h.Has(FlagPriority) && len(p) > n-5 {
					t.Fatalf("%+v: a fragment of %d of %d bytes", h, len(p), n)
				}
			case RSTStream:
				_ = ParseReset(payload).String()
			case WindowUpdate:
				if ParseWindowUpdate(payload) > MaxWindow {
					t.Fatal("a reserved bit is in the increment")
				}
			case GoAway:
				if last, _ := ParseGoAway(payload); last > MaxWindow {
					t.Fatal("a reserved bit is in the stream")
				}
			case Priority:
				_ = ParsePriority(payload)
			}
		}
	})
}

// FuzzSettings applies settings: they stay in range (CVE-2026-33814), and what we write of them is read as the same.
func FuzzSettings(f *testing.F) {
	s := DefaultSettings()
	s.InitialWindow, s.MaxFrame, s.MaxHeaderList, s.HeaderTableSize, s.EnableConnect = 1<<20, 1<<15, 1<<14, 0, true
	f.Add(s.Append(nil, true)[FrameHeaderLen:], true)
	f.Add(s.Append(nil, false)[FrameHeaderLen:], false)
	f.Add([]byte{0, 5, 0, 0, 0, 0}, true)
	f.Add([]byte{0, 4, 0xff, 0xff, 0xff, 0xff}, false)
	f.Add([]byte{0x0a, 0x0a, 1, 2, 3, 4, 0, 8, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, p []byte, fromServer bool) {
		s := DefaultSettings()
		if s.Apply(p[:len(p)/6*6], fromServer) != nil {
			return
		}
		if s.MaxFrame < MinMaxFrame || s.MaxFrame > MaxMaxFrame || s.InitialWindow > MaxWindow || fromServer && s.EnablePush && bytes.Contains(p, []byte{0, 2, 0, 0, 0, 1}) && len(p) == 6 {
			t.Fatalf("%x is %+v", p, s)
		}
		again := DefaultSettings()
		if err := again.Apply(s.Append(nil, true)[FrameHeaderLen:], true); err != nil {
			t.Fatalf("our own settings %+v: %v", s, err)
		}
		again.EnablePush = s.EnablePush // a server does not say it
		if again != s {
			t.Fatalf("%+v is read as %+v", s, again)
		}
	})
}

// FuzzEncoder writes fields with a dynamic table that changes its size, and another HPACK decoder reads the same fields.
func FuzzEncoder(f *testing.F) {
	f.Add("x-a", "1", "x-b", "2", uint16(4096))
	f.Add("cookie", "a=b", "cookie", "c=d", uint16(0))
	f.Add("content-type", "application/grpc", "grpc-status", "0", uint16(64))
	f.Add("authorization", "Bearer x", "x-long", string(bytes.Repeat([]byte("v"), 5000)), uint16(100))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, size uint16) {
		for _, x := range []string{n1, n2} {
			if !message.IsLowerToken([]byte(x)) {
				return
			}
		}
		if !message.IsValue([]byte(v1)) || !message.IsValue([]byte(v2)) {
			return
		}
		fields := message.Fields{{Name: []byte(n1), Value: []byte(v1)}, {Name: []byte(n2), Value: []byte(v2)}, {Name: []byte(n1), Value: []byte(v2)}}
		var got []hpack.HeaderField
		dec := hpack.NewDecoder(InitialTable, func(f hpack.HeaderField) { got = append(got, f) })
		enc := NewEncoder()
		for round := range 4 {
			if round == 2 {
				enc.SetTableSize(uint32(min(size, InitialTable)))
			}
			got = nil
			if _, err := dec.Write(enc.Trailers(nil, fields)); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if err := dec.Close(); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if len(got) != len(fields) {
				t.Fatalf("round %d: %d fields of %d", round, len(got), len(fields))
			}
			for i := range fields {
				if got[i].Name != string(fields[i].Name) || got[i].Value != string(fields[i].Value) {
					t.Fatalf("round %d: %q: %q became %q: %q", round, fields[i].Name, fields[i].Value, got[i].Name, got[i].Value)
				}
			}
		}
	})
}
