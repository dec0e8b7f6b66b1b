package kube

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// fieldManager is who the API server says wrote what we write.
const fieldManager = "malhad"

// Labels of what the control plane makes: `malha uninstall` goes by the first.
const (
	labelPartOf  = "app.kubernetes.io/part-of"
	labelManaged = "app.kubernetes.io/managed-by"
)

func partOf() map[string]string {
	return map[string]string{labelPartOf: "malha", labelManaged: fieldManager}
}

// waking returns a handler that only wakes: whoever wakes looks at everything, so that no event can be lost or come twice.
func waking(wake chan struct{}) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { poke(wake) }, UpdateFunc: func(any, any) { poke(wake) }, DeleteFunc: func(any) { poke(wake) },
	}
}

func poke(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// Pauses before what failed is tried again.
const (
	retryMin = 500 * time.Millisecond
	retryMax = 30 * time.Second
	// newsMax bounds how long something new waits where something else fails: it is a pass over that, too.
	newsMax = 2 * time.Second
	// resync is how often a writer looks again although nobody told it to: somebody may have undone what it wrote.
	resync = 5 * time.Minute
)

// settle calls do at once, and again a pause after it was woken, for all that woke it meanwhile, when it reported failure, and every so
// often; until ctx ends. It does not wait for quiet, which on a busy cluster may never come. The pause grows with every failure in a row:
// what is refused would else be asked for as often as the cluster changes.
func settle(ctx context.Context, wake <-chan struct{}, pause time.Duration, do func() bool) {
	failures, woken := 0, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			if !woken {
				woken = true
				timer.Reset(max(pause, min(pause<<min(failures, 8), newsMax)))
			}
		case <-timer.C:
			woken = false
			if do() {
				failures = 0
				timer.Reset(resync)
			} else {
				timer.Reset(min(retryMin<<min(failures, 8), retryMax))
				failures++
			}
		}
	}
}

// lean drops what no writer reads and what makes up most of an object in memory.
func lean(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
		o.SetAnnotations(nil)
	}
	return obj, nil
}
