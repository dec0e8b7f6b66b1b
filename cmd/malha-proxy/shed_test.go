package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/testport"
)

// hurry is the least time that the proxy gives a client for whom it has no room to say what it speaks (server.hurryTime).
const hurry = 20 * time.Millisecond

// cpu returns the processor time that a process has used, in clock ticks of 10 ms (proc_pid_stat(5), fields 14 and 15).
func cpu(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	if err != nil {
		t.Fatal(err)
	}
	system, err := strconv.Atoi(f[12])
	if err != nil {
		t.Fatal(err)
	}
	return user + system
}

// asks sends a request on a connection and returns the status of the answer; 0 when the connection ended without one.
func asks(c net.Conn) int {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestShed runs the proxy with few file descriptors. Whoever is too many gets an answer, the proxy does not spin, and once
// there is room again everything is as before.
func TestShed(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no shell to set a limit with")
	}
	program := build(t)
	web := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(web.Close)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"by the limit of connections", []string{"--admin", ""}},                                   // half of the descriptors, long before the end
		{"without a file descriptor left", []string{"--max-connections", "100000", "--admin", ""}}, // the hard way
	} {
		t.Run(tc.name, func(t *testing.T) {
			port := testport.Reserve(t)
			addr := fmt.Sprintf("127.0.0.1:%d", port)
			args := append([]string{"-c", `ulimit -n 80 && exec "$0" "$@"`, program, "--plan", writePlan(t, doors(door{"web", port, ident.HTTP, strings.TrimPrefix(web.URL, "http://")}))}, tc.args...)
			p := run1(t, "sh", args...)
			p.says(t, "plan is in force")

			// Requests on connections that are open already compete for descriptors with those who come.
			busy := &load{t: t, done: map[string]*atomic.Int64{}}
			defer busy.stop()
			busy.start("busy", 2, func(int, func()) error {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					return err
				}
				defer func() { _ = c.Close() }()
				for !busy.over.Load() && asks(c) != 0 {
					time.Sleep(time.Millisecond)
				}
				return nil
			})

			const clients = 200
			statuses := map[int]int{}
			var open []net.Conn
			for range clients {
				status := 0
				for status == 0 {
					began := time.Now()
					c, err := net.Dial("tcp", addr)
					if err != nil {
						t.Fatal(err)
					}
					open = append(open, c)
					// Who is kept from speaking for so long, as happens on a busy machine, is refused without a word.
					if status = asks(c); status == 0 && time.Since(began) < hurry {
						t.Fatalf("client %d got no answer\n%s", len(open), p.dump())
					}
				}
				statuses[status]++
			}
			t.Logf("answers by status: %v", statuses)
			if statuses[200] == 0 || statuses[503] == 0 || statuses[200]+statuses[503] != clients {
				t.Errorf("answers by status: %v; want some 200, the rest 503", statuses)
			}

			// Those who hold their connections cost nothing while they say nothing, and nobody is let in.
			busy.stop()
			// Ending what was under way takes as long as the machine likes; a second in which next to nothing is done has to come.
			const rest = time.Second
			before := cpu(t, p.cmd.Process.Pid)
			for by := time.Now().Add(time.Minute); ; {
				time.Sleep(rest)
				now := cpu(t, p.cmd.Process.Pid)
				used := time.Duration(now-before) * 10 * time.Millisecond
				if used <= rest/4 {
					break
				}
				if time.Now().After(by) {
					t.Errorf("it used %s of processor time in the last %s, though nobody has asked for anything for a minute", used, rest)
					break
				}
				before = now
			}

			for _, c := range open {
				_ = c.Close()
			}
			recovered := false
			for end := time.Now().Add(time.Minute); !recovered && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				recovered = asks(c) == 200
				_ = c.Close()
			}
			if !recovered {
				t.Fatalf("it did not recover:\n%s", p.output())
			}
			for range clients {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				if s := asks(c); s != 200 {
					t.Fatalf("status %d after it had recovered", s)
				}
				_ = c.Close()
			}
			select {
			case <-p.done:
				t.Fatalf("it died:\n%s", p.output())
			default:
			}
		})
	}
}
