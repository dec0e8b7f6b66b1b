package conn

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// A final response without a Date gets one; one that has a Date, and one that is not final, stay as they are.
func TestDate(t *testing.T) {
	h := handlerFunc(func(d stream.Downstream, _ *Peer) {
		_ = d.WriteInformational(&message.Response{Status: 103, Major: 1, Minor: 1, Fields: message.Fields{field("link", "</x>")}})
		r := &message.Response{Status: 200, Major: 1, Minor: 1}
		if string(d.Request().Path) == "/dated" {
			r.Fields.Add("date", []byte("Sun, 06 Nov 1994 08:49:37 GMT"))
		}
		_ = d.WriteHead(r, true)
		_ = d.Flush()
	})
	c := h2cClient(t)
	addr := listenH2(t, h, Defaults(), nil)
	check := func(what string, dates []string, path string) {
		t.Helper()
		if len(dates) != 1 {
			t.Errorf("%s %s: %d dates %q", what, path, len(dates), dates)
			return
		}
		at, err := http.ParseTime(dates[0])
		if old := at.Year() == 1994; err != nil || old != (path == "/dated") || !old && time.Since(at) > time.Hour {
			t.Errorf("%s %s: date %q, %v", what, path, dates[0], err)
		}
	}
	for _, path := range []string{"/", "/dated"} {
		resp, err := c.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		check("HTTP/2", resp.Header.Values("Date"), path)

		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			ServeH1(far, nil, &Peer{}, h, Defaults(), nil)
		}()
		go func() { _, _ = io.WriteString(near, "GET "+path+" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n") }()
		all, err := io.ReadAll(bufio.NewReader(near))
		if err != nil {
			t.Fatal(err)
		}
		<-done
		early, final, _ := strings.Cut(string(all), "\r\n\r\n")
		if strings.Contains(strings.ToLower(early), "\r\ndate:") {
			t.Errorf("an informational response has a date: %q", early)
		}
		var dates []string
		for line := range strings.SplitSeq(final, "\r\n") {
			if v, ok := strings.CutPrefix(line, "date: "); ok {
				dates = append(dates, v)
			}
		}
		check("HTTP/1", dates, path)
	}
}
