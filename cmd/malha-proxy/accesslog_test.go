package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/testport"
)

// TestAccessLogWithoutReader runs the program with its output on a pipe whose reader goes away, or never reads. Neither fails a
// request, and neither keeps the process from ending when it is told to; the lines that are lost are counted.
func TestAccessLogWithoutReader(t *testing.T) {
	t.Parallel()
	program := build(t)
	for _, tc := range []struct {
		name     string
		closed   bool
		requests int
	}{
		{"closed", true, 20},
		{"never read", false, 200}, // of 4 KB and more: the pipe holds 64 KB, and the proxy 512 KB
	} {
		t.Run(tc.name, func(t *testing.T) {
			port, admin := testport.Address(t), testport.Address(t)
			plan := filepath.Join(t.TempDir(), "plan.json")
			if err := os.WriteFile(plan, []byte(`{"node":{"name":{"namespace":"default","name":"a"},"role":"gateway"},
				"listeners":[{"name":"edge","bind":"`+port+`","direction":"edge","protocol":"http","routes":"r"}],
				"routes":[{"name":"r","hosts":[{"name":"all","domains":["*"],"routes":[{"name":"d","direct":{"status":200}}]}]}]}`), 0o600); err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			cmd := exec.Command(program, "--plan", plan, "--admin", admin, "--access-log", "stdout", "--drain-timeout", "1s")
			cmd.Stdout = w
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			if tc.closed {
				_ = r.Close()
			}
			lines := bufio.NewScanner(stderr)
			for lines.Scan() && !strings.Contains(lines.Text(), "plan is in force") {
			}
			ended := make(chan string)
			go func() {
				var all strings.Builder
				for lines.Scan() {
					all.WriteString(lines.Text() + "\n")
				}
				ended <- all.String()
			}()
			c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", port)
			if err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(c)
			for i := range tc.requests {
				if _, err := io.WriteString(c, "GET /"+strings.Repeat("a", 8000)+" HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
					t.Fatalf("request %d: %v", i, err)
				}
				resp, err := http.ReadResponse(in, nil)
				if err != nil || resp.StatusCode != 200 {
					t.Fatalf("request %d: %v %v", i, resp, err)
				}
			}
			for lost := false; !lost; {
				lost = !strings.Contains(metrics(t, admin), "malha_proxy_access_log_dropped_total 0\n")
			}
			_ = c.Close()
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			select {
			case log := <-ended:
				if !strings.Contains(log, "lost") || !strings.Contains(log, "proxy has ended") {
					t.Errorf("the log says %s", log)
				}
			case <-ctx.Done():
				_ = cmd.Process.Kill()
				t.Error("the process does not end")
				<-ended
			}
			if err := cmd.Wait(); err != nil && ctx.Err() == nil {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// metrics is a page of the admin port.
func metrics(t *testing.T, admin string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
