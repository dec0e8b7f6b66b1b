package control

import (
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/wire/serve"
)

// What a proxy was granted after it connected is what it has now, also when that ends sooner than the certificate from before.
func TestTheEndOfACertificate(t *testing.T) {
	now := time.Now()
	old := now.Add(24 * time.Hour)
	for name, tc := range map[string]struct {
		connected, granted, expires, want time.Time
	}{
		"as it connected":       {connected: now, expires: old, want: old},
		"granted, then used":    {connected: now, granted: now.Add(-time.Second), expires: old, want: old},
		"granted since":         {connected: now, granted: now.Add(time.Second), expires: old, want: now.Add(time.Second + time.Minute)},
		"granted, not here yet": {granted: now, want: now.Add(time.Minute)},
		"unknown":               {},
	} {
		if got := certEnd(&serve.ProxyStatus{Connected: tc.connected, Expires: tc.expires}, tc.granted, time.Minute); !got.Equal(tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
