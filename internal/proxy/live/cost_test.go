package live_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/live"
)

const tinyRequest = "GET /index.html?x=1 HTTP/1.1\r\nHost: a\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n"

// tinyApp answers every request without allocating.
func tinyApp(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, World!")
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = nc.Close() }()
				b := make([]byte, 4096)
				n := 0
				for {
					m, err := nc.Read(b[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(b[:n], []byte("\r\n\r\n")) {
						n = 0
						if _, err := nc.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// tinyClient returns a function that sends one request on a keep-alive connection and reads the answer.
func tinyClient(t testing.TB, addr string) func() {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	request, b := []byte(tinyRequest), make([]byte, 4096)
	return func() {
		if _, err := nc.Write(request); err != nil {
			t.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(b[:n], []byte("Hello, World!")); {
			m, err := nc.Read(b[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
	}
}

// A plain request on warm connections allocates nothing: in the proxy, which shares this process with an application and
// a client that do not either.
func TestPlainRequestDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	_, at := start(t, live.Options{}, simple(tinyApp(t)))
	do := tinyClient(t, at["out"])
	for range 100 {
		do()
	}
	if n := testing.AllocsPerRun(2000, do); n >= 1 {
		t.Errorf("%v allocations for a request", n)
	}
}

func BenchmarkPlainRequest(b *testing.B) {
	p := simple(tinyApp(b))
	px := live.New(live.Options{})
	if err := px.Apply(p); err != nil {
		b.Fatal(err)
	}
	do := tinyClient(b, addresses(px)["out"])
	b.ReportAllocs()
	for b.Loop() {
		do()
	}
}

// A connection that was served and is idle holds a stack of 4 KB: what found out its protocol, and what served it, is gone.
func TestIdleConnectionsHoldSmallStacks(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes frames larger")
	}
	const n = 400
	_, at := start(t, live.Options{}, simple(tinyApp(t)))
	stacks := func() uint64 {
		runtime.GC() // which halves stacks that are too large; a second time makes 4 KB of 16
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.StackInuse
	}
	get(t, client(t), "http://"+at["out"]+"/") // what is made once
	before := stacks()
	var open []net.Conn
	for range n {
		nc, err := net.Dial("tcp", at["out"])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		open = append(open, nc)
	}
	for range 2 {
		for _, nc := range open { // one after the other, so that the application needs one goroutine
			_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, err := http.ReadResponse(bufio.NewReader(nc), nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %v", resp, err)
			}
		}
	}
	if each := (stacks() - before) / n; each > 5<<10 {
		t.Errorf("an idle connection holds %d bytes of stack", each)
	}
}
