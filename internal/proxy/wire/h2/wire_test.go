package h2

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

var testLimits = Limits{Bytes: 4000, Fields: 40, TrailerBytes: 1000}

// block encodes "name: value" lines with the reference encoder.
func block(lines ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, l := range lines {
		i := strings.Index(l[1:], ":") + 1
		_ = enc.WriteField(hpack.HeaderField{Name: l[:i], Value: strings.TrimPrefix(l[i+1:], " ")})
	}
	return b.Bytes()
}

func show(f message.Fields) string {
	var b strings.Builder
	for _, x := range f {
		fmt.Fprintf(&b, "%s: %s\n", x.Name, x.Value)
	}
	return b.String()
}

func TestRequestRules(t *testing.T) {
	get := []string{":method: GET", ":scheme: http", ":path: /", ":authority: a"}
	with := func(more ...string) []string { return append(append([]string(nil), get...), more...) }
	tests := []struct {
		name    string // with the section of RFC 9113
		lines   []string
		open    bool // no END_STREAM
		want    string
		wantErr string
	}{
		{name: "8.3.1 get", lines: get, want: "GET http a / 0"},
		{name: "8.3.1 canonical", lines: []string{":method: GET", ":scheme: HTTP", ":path: /a/../%61?x=%2e", ":authority: A.B:80"}, want: "GET http a.b:80 /a?x=%2e 0"},
		{name: "8.3.1 host instead of :authority", lines: []string{":method: GET", ":scheme: http", ":path: /", "host: A"}, want: "GET http a / 0"},
		{name: "8.3.1 host equals :authority", lines: with("host: A"), want: "GET http a / 0"},
		{name: "8.3.1 host differs", lines: with("host: b"), wantErr: "host differs"},
		{name: "8.3.1 host twice", lines: with("host: a", "host: a"), wantErr: "more than one host"},
		{name: "8.3.1 no authority", lines: []string{":method: GET", ":scheme: http", ":path: /"}, wantErr: "neither :authority nor host"},
		{name: "8.3.1 user information", lines: []string{":method: GET", ":scheme: http", ":path: /", ":authority: u@a"}, wantErr: "authority"},
		{name: "8.3.1 authority list", lines: []string{":method: GET", ":scheme: http", ":path: /", ":authority: a,b"}, wantErr: "authority"},
		{name: "8.3.1 empty path", lines: []string{":method: GET", ":scheme: http", ":path: ", ":authority: a"}, wantErr: "path"},
		{name: "8.3.1 path without slash", lines: []string{":method: GET", ":scheme: http", ":path: a", ":authority: a"}, wantErr: "path"},
		{name: "8.3.1 fragment", lines: []string{":method: GET", ":scheme: http", ":path: /a#b", ":authority: a"}, wantErr: "path"},
		{name: "8.3.1 path with CRLF", lines: []string{":method: GET", ":scheme: http", ":path: /a\r\nx: y", ":authority: a"}, wantErr: "path"},
		{name: "8.3.1 options *", lines: []string{":method: OPTIONS", ":scheme: http", ":path: *", ":authority: a"}, want: "OPTIONS http a * 0"},
		{name: "8.3.1 get *", lines: []string{":method: GET", ":scheme: http", ":path: *", ":authority: a"}, wantErr: "OPTIONS"},
		{name: "8.3.1 no method", lines: get[1:], wantErr: ":method is missing"},
		{name: "8.3.1 no scheme", lines: []string{":method: GET", ":path: /", ":authority: a"}, wantErr: "missing"},
		{name: "8.3.1 no path", lines: []string{":method: GET", ":scheme: http", ":authority: a"}, wantErr: "missing"},
		{name: "8.3.1 other scheme", lines: []string{":method: GET", ":scheme: ftp", ":path: /", ":authority: a"}, wantErr: ":scheme"},
		{name: "8.3.1 method with a space", lines: []string{":method: GET /x", ":scheme: http", ":path: /", ":authority: a"}, wantErr: ":method"},
		{name: "8.3 pseudo twice", lines: append([]string{":method: GET"}, get...), wantErr: "twice"},
		{name: "8.3 pseudo after regular", lines: append([]string{"x: y"}, get...), wantErr: "after a regular"},
		{name: "8.3 unknown pseudo", lines: append([]string{":x: y"}, get...), wantErr: "does not belong"},
		{name: "8.3 pseudo of a response", lines: append([]string{":status: 200"}, get...), wantErr: "does not belong"},
		{name: "8.2.1 upper case", lines: with("X: y"), wantErr: "lower-case"},
		{name: "8.2.1 empty name", lines: with(": y"), wantErr: "lower-case"},
		{name: "8.2.1 space in name", lines: with("x y: z"), wantErr: "lower-case"},
		{name: "8.2.1 CR in value", lines: with("x: a\rb"), wantErr: "control"},
		{name: "8.2.1 LF in value", lines: with("x: a\nb"), wantErr: "control"},
		{name: "8.2.1 NUL in value", lines: with("x: a\x00b"), wantErr: "control"},
		{name: "8.2.1 DEL in value", lines: with("x: a\x7fb"), wantErr: "control"},
		{name: "8.2.1 space before value", lines: with("x:  a"), wantErr: "white space"},
		{name: "8.2.1 tab after value", lines: with("x: a\t"), wantErr: "white space"},
		{name: "8.2.1 empty value", lines: with("x: "), want: "GET http a / 0\nx: "},
		{name: "8.2.2 connection", lines: with("connection: x"), wantErr: "field of a connection"},
		{name: "8.2.2 keep-alive", lines: with("keep-alive: 1"), wantErr: "field of a connection"},
		{name: "8.2.2 proxy-connection", lines: with("proxy-connection: close"), wantErr: "field of a connection"},
		{name: "8.2.2 transfer-encoding", lines: with("transfer-encoding: chunked"), wantErr: "field of a connection"},
		{name: "8.2.2 upgrade", lines: with("upgrade: h2c"), wantErr: "field of a connection"},
		{name: "8.2.2 te", lines: with("te: gzip"), wantErr: "te"},
		{name: "8.2.2 te trailers", lines: with("te: trailers"), want: "GET http a / 0\nte: trailers"},
		{name: "3.1 http2-settings", lines: with("http2-settings: x"), want: "GET http a / 0"},
		{name: "8.2.3 cookies", lines: with("cookie: a=b", "x: y", "cookie: c=d", "cookie: e=f"), want: "GET http a / 0\ncookie: a=b; c=d; e=f\nx: y"},
		{name: "8.2.3 an empty cookie first", lines: with("cookie: ", "cookie: a=b"), want: "GET http a / 0\ncookie: a=b"},
		{name: "8.2.3 an empty cookie between", lines: with("cookie: a=b", "cookie: ", "cookie: c=d"), want: "GET http a / 0\ncookie: a=b; c=d"},
		{name: "8.2.3 an empty cookie last", lines: with("cookie: a=b", "cookie: "), want: "GET http a / 0\ncookie: a=b"},
		{name: "8.2.3 empty cookies", lines: with("cookie: ", "cookie: "), want: "GET http a / 0\ncookie: "},
		{name: "8.1.1 length", lines: with("content-length: 5"), open: true, want: "GET http a / 5"},
		{name: "8.1.1 length twice the same", lines: with("content-length: 5", "content-length: 5"), open: true, want: "GET http a / 5"},
		{name: "8.1.1 lengths differ", lines: with("content-length: 5", "content-length: 6"), open: true, wantErr: "content-length"},
		{name: "8.1.1 length with a sign", lines: with("content-length: +5"), open: true, wantErr: "content-length"},
		{name: "8.1.1 length without DATA", lines: with("content-length: 5"), wantErr: "without DATA"},
		{name: "8.1.1 length 0 without DATA", lines: with("content-length: 0"), want: "GET http a / 0"},
		{name: "8.1 body without length", lines: get, open: true, want: "GET http a / -1"},
		{name: "8.5 connect", lines: []string{":method: CONNECT", ":authority: a:443"}, open: true, want: "CONNECT  a:443  -1"},
		{name: "8.5 connect without port", lines: []string{":method: CONNECT", ":authority: a"}, open: true, wantErr: "port"},
		{name: "8.5 connect with path", lines: []string{":method: CONNECT", ":authority: a:1", ":path: /", ":scheme: http"}, open: true, wantErr: "CONNECT"},
		{name: "8.5 connect without authority", lines: []string{":method: CONNECT"}, open: true, wantErr: "CONNECT"},
		{name: "RFC 8441 4 extended connect", lines: append([]string{":protocol: WebSocket", ":method: CONNECT"}, get[1:]...), open: true, want: "GET http a / -1 websocket"},
		{name: "RFC 8441 4 protocol without connect", lines: append([]string{":protocol: websocket"}, get...), wantErr: ":protocol"},
		{name: "expect", lines: with("expect: 100-continue"), open: true, want: "GET http a / -1 continue\nexpect: 100-continue"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDecoder(InitialTable, testLimits)
			var a Arena
			var r message.Request
			err := d.Request(block(tt.lines...), !tt.open, &a, &r)
			if tt.wantErr != "" {
				var se StreamError
				if !errors.As(err, &se) || se.Code != ProtocolError || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			path := string(r.Path)
			if r.HasQuery {
				path += "?" + string(r.Query)
			}
			got := fmt.Sprintf("%s %s %s %s %d", r.Method, r.Scheme, r.Authority, path, r.Length)
			if len(r.Upgrade) > 0 {
				got += " " + string(r.Upgrade)
			}
			if r.ExpectContinue {
				got += " continue"
			}
			got = strings.TrimSuffix(got+"\n"+show(r.Fields), "\n")
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestResponseRules(t *testing.T) {
	for _, tt := range []struct {
		name    string
		lines   []string
		end     bool
		head    bool
		want    string
		wantErr string
	}{
		{name: "8.3.2 plain", lines: []string{":status: 200", "x: y"}, want: "200 -1 true"},
		{name: "8.3.2 empty", lines: []string{":status: 200"}, end: true, want: "200 0 true"},
		{name: "8.3.2 no status", lines: []string{"x: y"}, wantErr: ":status is missing"},
		{name: "8.3.2 status twice", lines: []string{":status: 200", ":status: 200"}, wantErr: "twice"},
		{name: "8.3.2 status of 2 digits", lines: []string{":status: 20"}, wantErr: ":status"},
		{name: "8.3.2 status 600", lines: []string{":status: 600"}, wantErr: ":status"},
		{name: "8.3 request pseudo", lines: []string{":status: 200", ":path: /"}, wantErr: "does not belong"},
		{name: "8.6 101", lines: []string{":status: 101"}, wantErr: "101"},
		{name: "8.1 informational", lines: []string{":status: 103"}, want: "103 0 false"},
		{name: "8.1 informational ends", lines: []string{":status: 103"}, end: true, wantErr: "ends the stream"},
		{name: "8.1.1 head", lines: []string{":status: 200", "content-length: 9"}, end: true, head: true, want: "200 9 false"},
		{name: "8.1.1 304", lines: []string{":status: 304", "content-length: 9"}, end: true, want: "304 9 false"},
		{name: "8.1.1 length lies", lines: []string{":status: 200", "content-length: 9"}, end: true, wantErr: "without DATA"},
		{name: "8.2.2 transfer-encoding", lines: []string{":status: 200", "transfer-encoding: chunked"}, wantErr: "connection"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDecoder(InitialTable, testLimits)
			var a Arena
			var r message.Response
			err := d.Response(block(tt.lines...), tt.end, tt.head, &a, &r)
			if tt.wantErr != "" {
				var se StreamError
				if !errors.As(err, &se) || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if got := fmt.Sprint(r.Status, r.Length, r.HasBody); err != nil || got != strings.ReplaceAll(tt.want, "  ", " ") {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func TestTrailerRules(t *testing.T) {
	d := NewDecoder(InitialTable, testLimits)
	var a Arena
	f, err := d.Trailers(block("grpc-status: 0", "content-length: 5", "authorization: x", "host: a", "x: y"), &a, nil)
	if got, want := show(f), "grpc-status: 0\nx: y\n"; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	for _, lines := range [][]string{{":status: 200"}, {":path: /"}, {"x: y", ":method: GET"}, {"connection: x"}, {"X: y"}} {
		if _, err := d.Trailers(block(lines...), &a, nil); err == nil {
			t.Errorf("%q were accepted", lines)
		}
	}
	if _, err := d.Trailers(block("x: "+strings.Repeat("y", 1000)), &a, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large trailers: %v", err)
	}
}

// Everything that was decoded counts, also what is dropped or joined; and the table stays in step after an error.
func TestLimits(t *testing.T) {
	get := []string{":method: GET", ":scheme: http", ":path: /", ":authority: a"}
	cookie := strings.Repeat("c", 500)
	for name, lines := range map[string][]string{
		"one value": {"x: " + strings.Repeat("y", 4000)},
		"one name":  {strings.Repeat("x", 4000) + ": y"},
		"cookies":   {"cookie: " + cookie, "cookie: " + cookie, "cookie: " + cookie, "cookie: " + cookie, "cookie: " + cookie, "cookie: " + cookie, "cookie: " + cookie, "cookie: " + cookie},
		"dropped":   strings.Split(strings.Repeat("http2-settings: x\n", 40), "\n")[:40],
		"hosts":     strings.Split(strings.Repeat("host: a\n", 40), "\n")[:40],
		"fields":    strings.Split(strings.Repeat("x: y\n", 37), "\n")[:37],
	} {
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		write := func(lines ...string) []byte {
			b.Reset()
			for _, l := range lines {
				i := strings.Index(l[1:], ":") + 1
				_ = enc.WriteField(hpack.HeaderField{Name: l[:i], Value: strings.TrimPrefix(l[i+1:], " ")})
			}
			return b.Bytes()
		}
		d := NewDecoder(InitialTable, testLimits)
		var a Arena
		var r message.Request
		if err := d.Request(write(append(append([]string(nil), get...), lines...)...), true, &a, &r); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		r.Reset()
		if err := d.Request(write(append(append([]string(nil), get...), "after: wards")...), true, &a, &r); err != nil || show(r.Fields) != "after: wards\n" {
			t.Errorf("%s: afterwards %q, %v", name, show(r.Fields), err)
		}
	}
}

func TestFrameRules(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    FrameHeader
		want error
	}{
		{"4.2 too long", FrameHeader{Length: MinMaxFrame + 1, Type: Data, StreamID: 1}, ConnError{Code: FrameSizeError}},
		{"4.2 longest", FrameHeader{Length: MinMaxFrame, Type: Data, StreamID: 1}, nil},
		{"6.1 DATA on 0", FrameHeader{Type: Data}, ConnError{Code: ProtocolError}},
		{"6.2 HEADERS on 0", FrameHeader{Type: Headers}, ConnError{Code: ProtocolError}},
		{"6.3 PRIORITY on 0", FrameHeader{Type: Priority, Length: 5}, ConnError{Code: ProtocolError}},
		{"6.3 PRIORITY of 4", FrameHeader{Type: Priority, Length: 4, StreamID: 1}, StreamError{Code: FrameSizeError}},
		{"6.4 RST_STREAM on 0", FrameHeader{Type: RSTStream, Length: 4}, ConnError{Code: ProtocolError}},
		{"6.4 RST_STREAM of 3", FrameHeader{Type: RSTStream, Length: 3, StreamID: 1}, ConnError{Code: FrameSizeError}},
		{"6.5 SETTINGS on 1", FrameHeader{Type: SettingsType, StreamID: 1}, ConnError{Code: ProtocolError}},
		{"6.5 SETTINGS of 5", FrameHeader{Type: SettingsType, Length: 5}, ConnError{Code: FrameSizeError}},
		{"6.5 ACK of 6", FrameHeader{Type: SettingsType, Flags: FlagAck, Length: 6}, ConnError{Code: FrameSizeError}},
		{"6.7 PING on 1", FrameHeader{Type: Ping, Length: 8, StreamID: 1}, ConnError{Code: ProtocolError}},
		{"6.7 PING of 7", FrameHeader{Type: Ping, Length: 7}, ConnError{Code: FrameSizeError}},
		{"6.8 GOAWAY on 1", FrameHeader{Type: GoAway, Length: 8, StreamID: 1}, ConnError{Code: ProtocolError}},
		{"6.8 GOAWAY of 7", FrameHeader{Type: GoAway, Length: 7}, ConnError{Code: FrameSizeError}},
		{"6.9 WINDOW_UPDATE of 5", FrameHeader{Type: WindowUpdate, Length: 5}, ConnError{Code: FrameSizeError}},
		{"6.10 CONTINUATION on 0", FrameHeader{Type: Continuation}, ConnError{Code: ProtocolError}},
		{"4.1 unknown", FrameHeader{Type: 0x4d, Length: 100}, nil},
	} {
		got := tt.h.Check(MinMaxFrame)
		switch e := got.(type) {
		case ConnError:
			got = ConnError{Code: e.Code}
		case StreamError:
			got = StreamError{Code: e.Code}
		}
		if got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestPadding(t *testing.T) {
	padded := FrameHeader{Type: Data, Flags: FlagPadded, StreamID: 1}
	if p, err := padded.Unpad([]byte{2, 'a', 0, 0}); string(p) != "a" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
	for _, p := range [][]byte{{}, {1}, {4, 0, 0, 0}, {255, 0}} {
		if _, err := padded.Unpad(p); err == nil {
			t.Errorf("padding %v was accepted", p)
		}
	}
	prio := FrameHeader{Type: Headers, Flags: FlagPriority, StreamID: 3}
	for n := range 5 {
		if _, err := prio.Fragment(make([]byte, n)); err == nil {
			t.Errorf("%d bytes of priority were accepted", n)
		}
	}
	if p, err := prio.Fragment([]byte{0, 0, 0, 1, 9, 'x'}); string(p) != "x" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := prio.Fragment([]byte{0x80, 0, 0, 3, 9, 'x'}); err == nil {
		t.Error("a stream that depends on itself was accepted")
	}
}

func TestSettings(t *testing.T) {
	apply := func(fromServer bool, pairs ...uint32) (Settings, error) {
		s := DefaultSettings()
		var p []byte
		for i := 0; i < len(pairs); i += 2 {
			v := pairs[i+1]
			p = append(p, byte(pairs[i]>>8), byte(pairs[i]), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
		}
		err := s.Apply(p, fromServer)
		return s, err
	}
	for _, tt := range []struct { // RFC 9113 section 6.5.2, RFC 8441 section 3
		fromServer bool
		pairs      []uint32
		code       ErrCode
	}{
		{false, []uint32{1, 0, 2, 0, 3, 0, 4, 0, 5, 16384, 6, 0, 99, 7}, NoError},
		{false, []uint32{2, 1}, NoError},
		{false, []uint32{2, 2}, ProtocolError},
		{true, []uint32{2, 1}, ProtocolError},
		{true, []uint32{2, 0}, NoError},
		{false, []uint32{4, 1<<31 - 1}, NoError},
		{false, []uint32{4, 1 << 31}, FlowControlError},
		{true, []uint32{5, 0}, ProtocolError},
		{true, []uint32{5, 16383}, ProtocolError},
		{true, []uint32{5, 1 << 24}, ProtocolError},
		{true, []uint32{5, 1<<24 - 1}, NoError},
		{true, []uint32{8, 1}, NoError},
		{true, []uint32{8, 2}, ProtocolError},
		{true, []uint32{8, 1, 8, 0}, ProtocolError},
	} {
		_, err := apply(tt.fromServer, tt.pairs...)
		var ce ConnError
		if errors.As(err, &ce); ce.Code != tt.code || (err == nil) != (tt.code == NoError) {
			t.Errorf("%v: %v", tt.pairs, err)
		}
	}
	want := Settings{HeaderTableSize: 100, MaxStreams: 7, InitialWindow: 1 << 20, MaxFrame: 20000, MaxHeaderList: 5, EnablePush: true, EnableConnect: true}
	got := DefaultSettings()
	b := want.Append(nil, true)
	if err := got.Apply(b[FrameHeaderLen:], true); err != nil || got != want || int(ParseFrameHeader(b).Length) != len(b)-FrameHeaderLen {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWindows(t *testing.T) {
	w := NewSendWindow(10)
	w.Take(4)
	if w.Available() != 6 || !w.Add(-20) || w.Available() != 0 || !w.Add(15) || w.Available() != 1 {
		t.Error("a window may be negative (6.9.2)")
	}
	if !w.Add(MaxWindow-1) || w.Add(1) {
		t.Error("a window is at most 2^31-1 (6.9.1)")
	}
	r := NewRecvWindow(100)
	if !r.Receive(100) || r.Consume(49) != 0 || r.Consume(1) != 50 || !r.Receive(50) || r.Receive(1) {
		t.Error("the receive window gives back what was consumed, in halves")
	}
}

func TestStates(t *testing.T) { // section 5.1
	for _, tt := range []struct {
		from  State
		end   bool
		recv  State
		recvs bool
		send  State
		sends bool
	}{
		{Idle, false, Open, true, Open, true},
		{Idle, true, HalfClosedRemote, true, HalfClosedLocal, true},
		{Open, false, Open, true, Open, true},
		{Open, true, HalfClosedRemote, true, HalfClosedLocal, true},
		{HalfClosedLocal, false, HalfClosedLocal, true, HalfClosedLocal, false},
		{HalfClosedLocal, true, Closed, true, HalfClosedLocal, false},
		{HalfClosedRemote, false, HalfClosedRemote, false, HalfClosedRemote, true},
		{HalfClosedRemote, true, HalfClosedRemote, false, Closed, true},
		{Closed, true, Closed, false, Closed, false},
	} {
		if s, err := tt.from.Receive(tt.end); s != tt.recv || (err == nil) != tt.recvs {
			t.Errorf("%d.Receive(%v) = %d, %v", tt.from, tt.end, s, err)
		}
		if s, ok := tt.from.Send(tt.end); s != tt.send || ok != tt.sends {
			t.Errorf("%d.Send(%v) = %d, %v", tt.from, tt.end, s, ok)
		}
	}
}

func TestBudget(t *testing.T) {
	now := int64(0)
	clock := func() int64 { return now }
	b := NewBudget(3, 2, now)
	for i := range 4 {
		if got := b.Spend(1, clock); got != (i < 3) {
			t.Errorf("spend %d: %v", i, got)
		}
	}
	if b.Earn(1); !b.Spend(1, clock) || b.Spend(1, clock) {
		t.Error("Earn gives one back")
	}
	if now = 1e9; !b.Spend(2, clock) || b.Spend(1, clock) {
		t.Error("a second gives two back")
	}
	if now = 100e9; b.Spend(4, clock) || !b.Spend(3, clock) {
		t.Error("no more than the limit")
	}
}

// What the encoder writes, the reference decoder reads, through evictions and changes of the table's size.
func TestEncoderAgainstReference(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var got []string
	dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) { got = append(got, f.Name+": "+f.Value) })
	enc := NewEncoder()
	indexed := 0
	for i := range 20000 {
		if rnd.IntN(500) == 0 {
			n := uint32(rnd.IntN(5000))
			dec.SetAllowedMaxDynamicTableSize(n)
			enc.SetTableSize(n)
			if rnd.IntN(2) == 0 {
				n = uint32(rnd.IntN(5000))
				dec.SetAllowedMaxDynamicTableSize(n)
				enc.SetTableSize(n)
			}
		}
		var f message.Fields
		var want []string
		for range rnd.IntN(12) {
			x := message.Field{Name: fmt.Appendf(nil, "x-%d", rnd.IntN(20)), Value: []byte(strings.Repeat(fmt.Sprint(rnd.IntN(6)), rnd.IntN(7)*rnd.IntN(60)))}
			switch rnd.IntN(8) {
			case 0:
				x.Name = []byte("cookie")
			case 1:
				x.Name = []byte("user-agent")
			case 2:
				x.Value = fmt.Append(nil, i)
			}
			f = append(f, x)
			want = append(want, string(x.Name)+": "+string(x.Value))
		}
		b := enc.Trailers(nil, f)
		if len(f) > 0 && len(b) == len(f) {
			indexed++
		}
		got = nil
		if _, err := dec.Write(b); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		if err := dec.Close(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("block %d: %s", i, diff)
		}
	}
	if indexed == 0 {
		t.Error("nothing was ever indexed")
	}
}

func TestHeadsRoundTrip(t *testing.T) {
	enc, dec := NewEncoder(), NewDecoder(InitialTable, testLimits)
	var a Arena
	for _, r := range []*message.Request{
		{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a:80"), Host: []byte("a"), Port: 80, Path: []byte("/"), Length: 0, Major: 2},
		{Method: []byte("POST"), Scheme: []byte("https"), Authority: []byte("a"), Host: []byte("a"), Path: []byte("/x"), Query: []byte("y=z"), HasQuery: true, Length: 17, Major: 2},
		{Method: []byte("PURGE"), Scheme: []byte("https"), Authority: []byte("a"), Host: []byte("a"), Path: []byte("/x"), Query: []byte{}, HasQuery: true, Length: message.Unknown, Major: 2},
		{Method: []byte("CONNECT"), Authority: []byte("a:1"), Host: []byte("a"), Port: 1, Length: message.Unknown, Major: 2},
		{Method: []byte("GET"), Scheme: []byte("https"), Authority: []byte("a"), Host: []byte("a"), Path: []byte("/ws"), Upgrade: []byte("websocket"), Length: message.Unknown, Major: 2},
	} {
		for range 3 {
			var got message.Request
			if err := dec.Request(enc.Request(nil, r), r.Length == 0, &a, &got); err != nil {
				t.Fatalf("%s: %v", r.Method, err)
			}
			if diff := cmp.Diff(r, &got, cmp.Transformer("text", func(b []byte) string { return string(b) })); diff != "" {
				t.Error(diff)
			}
		}
	}
	for _, status := range []int{200, 204, 304, 404, 418, 599} {
		r := &message.Response{Status: status, Length: message.Unknown, HasBody: status != 204 && status != 304, Major: 2}
		if status == 204 {
			r.Length = 0
		}
		var got message.Response
		if err := dec.Response(enc.Response(nil, r), false, false, &a, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, &got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestLongBlockIsSpreadOverContinuation(t *testing.T) {
	payload := bytes.Repeat([]byte("x"), 40_000)
	b := EndHeaders(append(BeginHeaders([]byte("before")), payload...), 6, 5, true, MinMaxFrame)[6:]
	var got []byte
	for i := 0; len(b) > 0; i++ {
		h := ParseFrameHeader(b)
		if wantType := Continuation; (i == 0) != (h.Type == Headers) || i > 0 && h.Type != wantType || h.StreamID != 5 || h.Has(FlagEndStream) != (i == 0) {
			t.Fatalf("frame %d: %+v", i, h)
		}
		b = b[FrameHeaderLen:]
		got = append(got, b[:h.Length]...)
		b = b[h.Length:]
		if h.Has(FlagEndHeaders) != (len(b) == 0) {
			t.Errorf("frame %d: END_HEADERS", i)
		}
	}
	if !bytes.Equal(got, payload) {
		t.Error("the block changed")
	}
}

func TestEncoderDoesNotAllocate(t *testing.T) {
	enc := NewEncoder()
	r := &message.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/x"), Fields: message.Fields{
		{Name: []byte("x-request-id"), Value: []byte("0123456789")}, {Name: []byte("user-agent"), Value: []byte("test")}}}
	b := make([]byte, 0, 1000)
	if n := testing.AllocsPerRun(100, func() { b = enc.Request(b[:0], r) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzHeaderBlock looks for panics and for messages against the invariants of package message.
func FuzzHeaderBlock(f *testing.F) {
	f.Add(block(":method: GET", ":scheme: http", ":path: /a/../b?c", ":authority: a:80", "cookie: a", "cookie: b", "x: y"))
	f.Add(block(":method: GET", ":scheme: http", ":path: /", ":authority: a", "cookie: ", "cookie: a", "cookie: "))
	f.Add(block(":method: CONNECT", ":protocol: websocket", ":scheme: https", ":path: /", ":authority: a"))
	f.Add(block(":status: 200", "content-length: 5"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDecoder(InitialTable, testLimits)
		var a Arena
		var r message.Request
		if err := d.Request(b, false, &a, &r); err == nil {
			if !message.IsToken(r.Method) || len(r.Host) == 0 {
				t.Errorf("method %q host %q", r.Method, r.Host)
			}
			if len(r.Path) == 0 && string(r.Method) != "CONNECT" || len(r.Path) > 0 && r.Path[0] != '/' && string(r.Path) != "*" {
				t.Errorf("path %q", r.Path)
			}
			for _, x := range r.Fields {
				if !message.IsLowerToken(x.Name) || !message.IsValue(x.Value) {
					t.Errorf("field %q: %q", x.Name, x.Value)
				}
			}
			// What we make of it, we take back as the same.
			var again message.Request
			if err := NewDecoder(InitialTable, Limits{Bytes: 1 << 20, Fields: 100}).Request(NewEncoder().Request(nil, &r), false, &a, &again); err != nil {
				t.Errorf("our own block of %+v: %v", r, err)
			} else if string(again.Path) != string(r.Path) || string(again.Authority) != string(r.Authority) || string(again.Query) != string(r.Query) {
				t.Errorf("%q %q became %q %q", r.Authority, r.Path, again.Authority, again.Path)
			}
		}
		var res message.Response
		_ = d.Response(b, true, false, &a, &res)
		_, _ = d.Trailers(b, &a, nil)
		_ = d.Skip(b)
	})
}
