package stack

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

// What of a request body is here already goes to the endpoint together, and nothing of it waits for what is not here.
func TestPiecesOfABodyGoTogether(t *testing.T) {
	const many = 200
	p := &pipes{}
	back := p.listen()
	type read struct {
		b   []byte
		err error
	}
	reads := make(chan read, 2*many)
	go func() {
		nc, err := back.Accept()
		if err != nil {
			return
		}
		for room := make([]byte, 64<<10); ; {
			n, err := nc.Read(room) // of a pipe: one write
			reads <- read{bytes.Clone(room[:n]), err}
			if err != nil {
				return
			}
			if bytes.HasSuffix(room[:n], []byte("0\r\n\r\n")) {
				_, _ = io.WriteString(nc, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
			}
		}
	}()
	r := newRig(t, setup{
		pipes: p, routes: []plan.Route{{Name: "r", Forward: []plan.Destination{{Cluster: "c", Weight: 1}}}},
		at: map[string][]plan.Endpoint{"c": {{Address: back.Addr().String()}}},
	})
	nc, err := r.dial(t.Context(), strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	send := func(s string) { _, _ = io.WriteString(nc, s) }
	var got []byte
	writes := 0
	until := func(end string) {
		t.Helper()
		for !bytes.HasSuffix(got, []byte(end)) {
			select {
			case next := <-reads:
				if next.err != nil {
					t.Fatalf("the endpoint read %q and then %v", got, next.err)
				}
				got = append(got, next.b...)
				writes++
			case <-time.After(time.Minute):
				t.Fatalf("%q does not come; the endpoint has %q", end, got)
			}
		}
	}
	// The size of the next chunk is here, but none of it.
	send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n1\r\n")
	until("first\r\n")
	writes = 0
	send("x\r\n" + strings.Repeat("1\r\nx\r\n", many) + "0\r\n\r\n")
	until("0\r\n\r\n")
	if n := bytes.Count(got, []byte("1\r\nx\r\n")); n != many+1 {
		t.Errorf("%d of %d bytes came", n, many+1)
	}
	if writes > 2 {
		t.Errorf("%d chunks that came together were written in %d pieces", many, writes)
	}
	b, err := io.ReadAll(io.LimitReader(nc, 12))
	if err != nil || string(b) != "HTTP/1.1 204" {
		t.Errorf("the client got %q, %v", b, err)
	}
}
