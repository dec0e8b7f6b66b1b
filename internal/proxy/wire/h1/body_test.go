package h1

import (
	"bytes"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// decode feeds in, step bytes at a time, and returns the data, the trailers and what followed the body.
func decode(in string, length int64, step int) (data, trailers, rest string, err error) {
	var d Body
	d.Reset(length, false, limits)
	var out bytes.Buffer
	for at := 0; at < len(in) && !d.Done(); {
		b := []byte(in[at:min(at+step, len(in))])
		p, n, err := d.Next(b)
		out.Write(p)
		at += n
		if err != nil {
			return out.String(), "", "", err
		}
		if d.Done() {
			rest = in[at:]
		}
	}
	if !d.Done() {
		return out.String(), "", "", errPart
	}
	for _, f := range d.Trailers() {
		trailers += string(f.Name) + "=" + string(f.Value) + ";"
	}
	return out.String(), trailers, rest, nil
}

var errPart = &Error{0, "short"}

var chunked = []struct {
	in, data, trailers, rest string
	err                      *Error
}{
	{in: "0\r\n\r\n"},
	{in: "0\r\n\r\nGET", rest: "GET"},
	{in: "3\r\nabc\r\n0\r\n\r\n", data: "abc"},
	{in: "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nx", data: "abcde", rest: "x"},
	{in: "A\r\n0123456789\r\n0\r\n\r\n", data: "0123456789"},
	{in: "a\r\n0123456789\r\n000\r\n\r\n", data: "0123456789"},
	{in: "0003\r\nabc\r\n0\r\n\r\n", data: "abc"},
	{in: "3;a=b\r\nabc\r\n0;c\r\n\r\n", data: "abc"},
	{in: "3;a=\"b c\"\r\nabc\r\n0\r\n\r\n", data: "abc"},
	{in: "0\r\nX-T: 1\r\nY: 2\r\n\r\nz", trailers: "x-t=1;y=2;", rest: "z"},
	{in: "0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nAuthorization: x\r\nCookie: y\r\nOk: z\r\n\r\n", trailers: "ok=z;"},
	{in: "0x3\r\nabc\r\n0\r\n\r\n", err: ErrChunkSize},
	{in: "+3\r\nabc\r\n0\r\n\r\n", err: ErrChunkSize},
	{in: "-0\r\n\r\n", err: ErrChunkSize},
	{in: "3_0\r\nabc", err: ErrChunkSize},
	{in: "3 \r\nabc\r\n0\r\n\r\n", err: ErrChunkSize},
	{in: " 3\r\nabc\r\n0\r\n\r\n", err: ErrChunkSize},
	{in: "3\t\r\nabc", err: ErrChunkSize},
	{in: "\r\nabc", err: ErrChunkSize},
	{in: ";a\r\nabc", err: ErrChunkSize},
	{in: "g\r\n", err: ErrChunkSize},
	{in: "ffffffffffffffff\r\n", err: ErrChunkSize},
	{in: "8000000000000000\r\n", err: ErrChunkSize},
	{in: "00000000000000003\r\nabc", err: ErrChunkSize},
	{in: strings.Repeat("0", 1000) + "3\r\nabc", err: ErrChunkSize},
	{in: "3\nabc\r\n0\r\n\r\n", err: ErrChunkSize},
	{in: "3\rabc", err: ErrChunk},
	{in: "3;a\nabc\r\n0\r\n\r\n", err: ErrChunk},
	{in: "3;a\rb\r\nabc", err: ErrChunk},
	{in: "3;a\x00\r\nabc", err: ErrChunk},
	{in: "3\r\nabcXX0\r\n\r\n", err: ErrChunk},
	{in: "3\r\nabcd\r\n0\r\n\r\n", err: ErrChunk},
	{in: "3\r\nabc\n0\r\n\r\n", err: ErrChunk},
	{in: "3\r\nabc\r0\r\n\r\n", err: ErrChunk},
	{in: "3\r\nab", data: "ab", err: errPart},
	{in: "0\r\n\n", err: ErrLineEnd},
	{in: "0\r\n\rX", err: ErrLineEnd},
	{in: "0\r\nX: y\n\r\n", err: ErrLineEnd},
	{in: "0\r\nX : y\r\n\r\n", err: ErrTrailerField},
	{in: "0\r\n: y\r\n\r\n", err: ErrTrailerField},
	{in: "0\r\nX: a\x00\r\n\r\n", err: ErrTrailerField},
	{in: "0\r\nA: b\r\n c\r\n\r\n", err: ErrFold},
	{in: "0\r\n" + strings.Repeat("a: b\r\n", 21) + "\r\n", err: ErrManyFields},
	{in: "0\r\nA: " + strings.Repeat("x", 1100) + "\r\n\r\n", err: ErrTrailers},
	{in: strings.Repeat("1;"+strings.Repeat("e", 1000)+"\r\nx\r\n", 6), err: ErrExtensions},
}

func TestChunked(t *testing.T) {
	for _, tt := range chunked {
		for _, step := range []int{1, 2, 5, 1 << 20} {
			data, trailers, rest, err := decode(tt.in, message.Unknown, step)
			if tt.err != nil {
				if err != error(tt.err) {
					t.Errorf("%.60q by %d: error %v, want %v", tt.in, step, err, tt.err)
				}
				continue
			}
			if err != nil || data != tt.data || trailers != tt.trailers || rest != tt.rest {
				t.Errorf("%.60q by %d: data %q trailers %q rest %q error %v", tt.in, step, data, trailers, rest, err)
			}
		}
	}
}

func TestLength(t *testing.T) {
	for _, step := range []int{1, 3, 100} {
		data, _, rest, err := decode("helloworld", 5, step)
		if data != "hello" || rest != "world" || err != nil {
			t.Errorf("by %d: %q %q %v", step, data, rest, err)
		}
	}
	var d Body
	d.Reset(0, true, limits)
	if p, n, err := d.Next([]byte("all")); string(p) != "all" || n != 3 || err != nil || d.Done() {
		t.Errorf("until close: %q %d %v", p, n, err)
	}
}

// What AppendChunk writes, Body reads, at the sizes where the number of digits changes.
func TestChunkRoundTrip(t *testing.T) {
	for _, n := range []int{1, 9, 10, 15, 16, 17, 255, 256, 4095, 4096, 65535, 65536, 1 << 20} {
		p := bytes.Repeat([]byte{'x'}, n)
		in := AppendLastChunk(AppendChunk(nil, p), message.Fields{{Name: []byte("t"), Value: []byte("v")}})
		data, trailers, rest, err := decode(string(in), message.Unknown, 1<<30)
		if err != nil || len(data) != n || trailers != "t=v;" || rest != "" {
			t.Errorf("%d bytes: %d came back, trailers %q, rest %q, error %v", n, len(data), trailers, rest, err)
		}
	}
}
