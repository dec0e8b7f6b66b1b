package server

import "testing"

// What a connection begins with is told from as few bytes as it takes, and the same however they come.
func TestLook(t *testing.T) {
	for in, want := range map[string]spoken{
		"GET / HTTP/1.1\r\n": http1, "POST http://a/ HTTP/1.1\r\n": http1, "OPTIONS * HTTP/1.1\r\n": http1, "CONNECT a:1 HTTP/1.1\r\n": http1,
		h2Preface: http2, "\x16\x03\x01\x02\x00\x01": tlsHello, "\x16\x02\x00": opaque,
		"GET key\r\n": opaque, "PING\r\n": opaque, "*1\r\n$4\r\nPING\r\n": opaque, "\x00\x00\x00\x08": opaque, "SSH-2.0-x\r\n": opaque,
		"PRI * HTTP/1.0": opaque, "get / HTTP/1.1\r\n": opaque, "": unclear, "GE": unclear, "GET ": unclear, "PRI * HTTP/2.0\r\n": unclear,
	} {
		if got := look([]byte(in)); got != want {
			t.Errorf("%q looks like %d, want %d", in, got, want)
		}
		for n := range len(in) {
			if got := look([]byte(in[:n])); got != unclear && got != want {
				t.Errorf("%q looks like %d after %d bytes, and then like %d", in, got, n, want)
			}
		}
	}
}
