package conformance

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/testport"
)

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLargeBodies sends a large body each way through the program, between each pair of versions, and holds the most memory
// that it ever had to a bound that has nothing to do with the body. MALHA_BODY is the size in MiB: 256 by default, 5120 in
// CI.
func TestLargeBodies(t *testing.T) {
	size := int64(256 << 20)
	if v := os.Getenv("MALHA_BODY"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		size = n << 20
	}
	const most = 64 << 10 // KiB
	app := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
			_, _ = io.CopyN(w, zeros{}, size)
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n, err)
	}))
	for down := 1; down <= 2; down++ {
		for _, up := range []ident.Protocol{ident.HTTP, ident.HTTP2} {
			t.Run(fmt.Sprintf("h%d to %v", down, up), func(t *testing.T) {
				p := newPlan(plan.Outbound, up, app, clientIdentity)
				p.Listeners[0].Bind = testport.Address(t)
				pid := startProxy(t, p)
				tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
				tr.Protocols.SetHTTP1(down == 1)
				tr.Protocols.SetUnencryptedHTTP2(down == 2)
				defer tr.CloseIdleConnections()
				c := &http.Client{Transport: tr, Timeout: 10 * time.Minute}
				url := "http://" + p.Listeners[0].Bind + "/"
				resp, err := c.Get(url)
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if n != size || err != nil {
					t.Errorf("down: %d bytes of %d, %v", n, size, err)
				}
				resp, err = c.Post(url, "application/octet-stream", io.LimitReader(zeros{}, size)) // chunked in HTTP/1.1
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if want := fmt.Sprint(size, nil); string(got) != want || err != nil {
					t.Errorf("up: %q, %v, want %q", got, err, want)
				}
				if kib := peak(t, pid); kib > most {
					t.Errorf("the proxy had %d KiB at its most", kib)
				}
			})
		}
	}
}

var reHWM = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peak is the largest resident memory that a process ever had, in KiB.
func peak(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := reHWM.FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in %q", b)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
