package live_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// TestNoTimeToDrain: without time for it, a listener that a plan takes away ends what is open, as the end of the proxy does.
func TestNoTimeToDrain(t *testing.T) {
	arrived := make(chan struct{})
	slow := app(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	px, at := start(t, live.Options{DrainTime: -1}, simple(slow))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // less than DefaultDrainTime
	defer cancel()
	c, ended := client(t), make(chan error, 1)
	go func() {
		r, err := http.NewRequestWithContext(ctx, "POST", "http://"+at["out"]+"/", nil)
		if err == nil {
			var resp *http.Response
			if resp, err = c.Do(r); err == nil {
				_ = resp.Body.Close()
			}
		}
		ended <- err
	}()
	<-arrived
	if err := px.Apply(&plan.Plan{}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Errorf("the open request ended with %v; %v", err, ctx.Err())
	}
}
