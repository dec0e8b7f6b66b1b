package local

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// answering calls beforeHead when an answer begins.
type answering struct {
	*httptest.ResponseRecorder
	beforeHead func()
}

func (a answering) Header() http.Header {
	a.beforeHead()
	return a.ResponseRecorder.Header()
}

// A line that is written while somebody begins to follow comes once.
func TestFollowersGetEveryLineOnce(t *testing.T) {
	m := &Mesh{out: newOutput(nil)}
	w := m.out.writer("default/a", "stdout")
	_, _ = w.Write([]byte("one\n"))
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	rec := answering{httptest.NewRecorder(), func() {
		_, _ = w.Write([]byte("two\n"))
		close(begun)
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.logs(rec, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/logs?source=default/a&tail=10&follow=true", nil))
	}()
	<-begun
	for waiting := true; waiting; { // until nothing is left to be sent
		m.out.mu.Lock()
		for f := range m.out.followers {
			waiting = len(f.lines) > 0
		}
		m.out.mu.Unlock()
	}
	cancel()
	<-done
	got := rec.Body.String()
	if n := strings.Count(got, `"one"`); n != 1 {
		t.Errorf("the line before came %d times", n)
	}
	if n := strings.Count(got, `"two"`); n != 1 {
		t.Errorf("the line in between came %d times\n%s", n, got)
	}
}
