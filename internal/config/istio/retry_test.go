package istio_test

import (
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

// TestBackoff: the longest pause is ten times the first, no more than an hour unless that is longer itself, and never negative, of which a
// proxy can take no random part.
func TestBackoff(t *testing.T) {
	for backoff, want := range map[string]time.Duration{"25ms": 250 * time.Millisecond, "30m": time.Hour, "2h": 2 * time.Hour, "876000h": 876_000 * time.Hour} {
		objects, ds := config.Parse("vs.yaml", []byte(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}], retries: {attempts: 1, backoff: `+backoff+`}}]}
`))
		cfg, more := config.Translate(objects)
		if ds = append(ds, more...); model.HasErrors(ds) {
			t.Fatal(ds)
		}
		if got := cfg.Routings[0].HTTP[0].Retry.BackoffMax.D(); got != want {
			t.Errorf("backoff %s: at most %v, want %v", backoff, got, want)
		}
	}
}
