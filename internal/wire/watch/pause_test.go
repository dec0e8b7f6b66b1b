package watch

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestPause is that a control plane which is away is looked for often, and one that hangs up is left alone for ever longer.
func TestPause(t *testing.T) {
	away, refusing := fmt.Errorf("%w: connection refused", errUnreached), errors.New("the control plane hung up")
	for _, tc := range []struct {
		failures    int
		err         error
		least, most time.Duration
	}{
		{0, away, backoffMin / 2, backoffMin},
		{0, refusing, backoffMin / 2, backoffMin},
		{3, away, 4 * backoffMin, 8 * backoffMin},
		{1000, away, unreachedMax / 2, unreachedMax},
		{1000, refusing, backoffMax / 2, backoffMax},
	} {
		for range 100 {
			if d := pause(tc.failures, tc.err); d < tc.least || d > tc.most {
				t.Fatalf("after %d failures, %v: %v, want %v to %v", tc.failures, tc.err, d, tc.least, tc.most)
			}
		}
	}
}
