package local

import (
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/app/control"
)

// TestSinceWhen: a proxy that connects again, as for each new certificate, confirms what it runs since long ago.
func TestSinceWhen(t *testing.T) {
	changed := time.Now().Add(-time.Hour)
	acked := changed.Add(59 * time.Minute)
	for sync, want := range map[control.Sync]syncState{
		control.Synced: {sync: Synced, applied: changed},
		control.Stale:  {sync: Stale, applied: acked},
		control.Failed: {sync: SyncFailed, applied: acked},
	} {
		if got := syncStateOf(&control.ProxyStatus{Sync: sync, Changed: changed, LastAck: acked}); got != want {
			t.Errorf("%s: %+v, want %+v", sync, got, want)
		}
	}
}
