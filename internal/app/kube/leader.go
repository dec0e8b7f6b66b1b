package kube

import (
	"context"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// LeaseName is the Lease by which replicas agree who writes.
const LeaseName = "malha-leader"

// Times of the election: a replica that vanishes is replaced within leaseTime.
const (
	leaseTime  = 15 * time.Second
	renewTime  = 10 * time.Second
	electRetry = 2 * time.Second
)

// elect calls lead whenever this replica is the leader, with a context that ends when it is not any more, until ctx ends. It
// returns when lead has returned. Whoever loses the lease may overlap its successor by what it has just begun: every writer
// compares before it writes, and the API server refuses what was compared with an older state.
func elect(ctx context.Context, client kubernetes.Interface, namespace, identity string, log *slog.Logger, told *troubles, lead func(context.Context)) error {
	for ctx.Err() == nil {
		// The elector starts its callbacks in goroutines of its own and forgets them; what they start is ours.
		var wg sync.WaitGroup
		leading, ended := make(chan context.Context, 1), make(chan struct{})
		le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &lease{told: told, Interface: &resourcelock.LeaseLock{
				LeaseMeta: metav1.ObjectMeta{Name: LeaseName, Namespace: namespace}, Client: client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: identity}, Labels: partOf(),
			}},
			LeaseDuration: leaseTime, RenewDeadline: renewTime, RetryPeriod: electRetry,
			ReleaseOnCancel: true, Name: LeaseName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) { leading <- ctx },
				OnStoppedLeading: func() {},
				OnNewLeader:      func(who string) { log.Info("statuses, trust bundles and gateways have a writer", "replica", who) },
			},
		})
		if err != nil {
			return err
		}
		wg.Go(func() {
			select {
			case ctx := <-leading:
				lead(ctx)
			case <-ended:
			}
		})
		// The library says at every attempt that it failed; lease says it once.
		le.Run(klog.NewContext(ctx, klog.Logger{}))
		close(ended)
		wg.Wait()
	}
	return ctx.Err()
}

// lease notes what becomes of the Lease.
type lease struct {
	resourcelock.Interface
	told *troubles
}

// note notes what became of a question. What another replica did first is no failure.
func (l *lease) note(ctx context.Context, step string, err error) {
	if ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
		l.told.fails(taskLease.by(step), err)
	}
}

// Get is the lock's.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r, raw, err := l.Interface.Get(ctx)
	l.note(ctx, "get", err)
	return r, raw, err
}

// Create is the lock's.
func (l *lease) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, r)
	l.note(ctx, "write", err)
	return err
}

// Update is the lock's.
func (l *lease) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, r)
	l.note(ctx, "write", err)
	return err
}
