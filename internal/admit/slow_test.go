package admit

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// sender is the server's side of a review that comes slowly.
type sender struct {
	*httptest.ResponseRecorder
	body *io.PipeWriter
}

func (s *sender) SetReadDeadline(by time.Time) error {
	time.AfterFunc(time.Until(by), func() { _ = s.body.CloseWithError(os.ErrDeadlineExceeded) })
	return nil
}

// TestSlowSenders: who sends a review slowly keeps nobody else waiting, and has no longer than the API server waits for an answer.
func TestSlowSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(options())
		var all sync.WaitGroup
		slow := make([]*sender, 2*atOnce)
		for i := range slow {
			r, w := io.Pipe()
			slow[i] = &sender{httptest.NewRecorder(), w}
			request := httptest.NewRequest("POST", "/validate", r)
			request.Header.Set("Content-Type", "application/json")
			all.Go(func() { h.ServeHTTP(slow[i], request) })
		}
		synctest.Wait()
		began := time.Now()
		if status, _, text := ask(t, h, "/inject", review("shop", "Pod", "CREATE", fmt.Sprintf(pod, "", ""), ""), nil); status != 200 {
			t.Errorf("a pod beside slow senders: %d %s", status, text)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("a pod waited %s for slow senders", took)
		}
		all.Wait()
		if took := time.Since(began); took != maxTime {
			t.Errorf("a slow sender had %s, want %s", took, maxTime)
		}
		for _, s := range slow {
			if s.Code != http.StatusRequestTimeout {
				t.Fatalf("a slow sender got %d %s", s.Code, s.Body)
			}
		}
	})
}

// TestReviewsAreBoundedTogether: what is read counts until it is forgotten, and beyond the bound nothing more is read.
func TestReviewsAreBoundedTogether(t *testing.T) {
	var kept atomic.Int64
	kept.Store(maxKept - 5)
	for _, tc := range []struct {
		body string
		want error
	}{{"12345", nil}, {"123456", errBusy}, {"12345", nil}} {
		m := &metered{r: io.NopCloser(strings.NewReader(tc.body)), kept: &kept}
		if _, err := io.ReadAll(m); !errors.Is(err, tc.want) {
			t.Errorf("%d bytes where there is room for 5: %v", len(tc.body), err)
		}
		m.forget()
	}
}
