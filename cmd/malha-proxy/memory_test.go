package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	h2frames "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/testport"
)

// peak is the most resident memory that a process ever had, without the pages of its program, in bytes.
func peak(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]int{}
	for line := range strings.Lines(string(b)) {
		if name, rest, ok := strings.Cut(line, ":"); ok {
			if f := strings.Fields(rest); len(f) == 2 && f[1] == "kB" {
				values[name], _ = strconv.Atoi(f[0])
			}
		}
	}
	return (values["VmHWM"] - values["RssFile"]) << 10
}

// uploads is the beginning of an HTTP/2 connection with four requests of 256 KB each, which is as much as may be sent ahead.
func uploads() []byte {
	var block, out bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/"}, {Name: ":authority", Value: "hole"}} {
		_ = enc.WriteField(f)
	}
	out.WriteString(h2frames.ClientPreface)
	fr := h2frames.NewFramer(&out, nil)
	_ = fr.WriteSettings()
	for id := uint32(1); id < 8; id += 2 {
		_ = fr.WriteHeaders(h2frames.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	}
	for range 16 {
		for id := uint32(1); id < 8; id += 2 {
			_ = fr.WriteData(id, false, make([]byte, 16<<10))
		}
	}
	return out.Bytes()
}

// TestShedMemory sends a proxy that may have 40 MB ten times as much, for an endpoint that reads nothing of it. It stays within its
// memory, tells those who send more than there is room for, and afterwards everything is as before.
// Not beside other tests: it takes so much of the machine that their clients would come too late.
func TestShedMemory(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no shell to set a limit with")
	}
	const limit, clients = 40 << 20, 400
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := hole.Accept()
			if err != nil {
				return
			}
			_ = c.(*net.TCPConn).SetReadBuffer(4096)
			held = append(held, c)
		}
	})
	t.Cleanup(func() {
		_ = hole.Close()
		accepting.Wait()
		for _, c := range held {
			_ = c.Close()
		}
	})
	port := testport.Reserve(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	p := run1(t, "sh", "-c", `GOMEMLIMIT=`+strconv.Itoa(limit)+` exec "$0" "$@"`, build(t), "--plan",
		writePlan(t, doors(door{"hole", port, ident.HTTP, hole.Addr().String()})), "--admin", "")
	p.says(t, "plan is in force")

	message := uploads()
	var all sync.WaitGroup
	release := make(chan struct{})
	var sent sync.WaitGroup
	var told atomic.Int64
	for range clients {
		sent.Add(1)
		all.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				sent.Done()
				return
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = c.Write(message) // who is turned away does not send all of it
			_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
			for fr := h2frames.NewFramer(io.Discard, c); ; {
				f, err := fr.ReadFrame()
				if err != nil {
					break
				}
				switch f := f.(type) {
				case *h2frames.RSTStreamFrame:
					if f.ErrCode == h2frames.ErrCodeEnhanceYourCalm {
						told.Add(1)
					}
				case *h2frames.GoAwayFrame:
					if f.ErrCode == h2frames.ErrCodeEnhanceYourCalm {
						told.Add(1)
					}
				}
			}
			sent.Done()
			<-release
		})
	}
	sent.Wait()
	if told.Load() == 0 {
		t.Errorf("nobody was told that there is no room:\n%s", p.output())
	}
	// What the runtime has beside the heap it counts itself, too; the rest is for what grows between two collections.
	if most := peak(t, p.cmd.Process.Pid); most > limit*5/4 {
		t.Errorf("it had %d MB of %d", most>>20, limit>>20)
	}
	close(release)
	all.Wait()

	_ = hole.Close()
	accepting.Wait()
	for _, c := range held {
		_ = c.Close()
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		// The endpoint is gone: an answer about that is one about this request, not about memory.
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: hole\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(c)
		_ = c.Close()
		if strings.Contains(string(b), "upstream connect error") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it did not recover, but says %q:\n%s", b, p.output())
		}
	}
	select {
	case <-p.done:
		t.Fatalf("it died:\n%s", p.output())
	default:
	}
}
