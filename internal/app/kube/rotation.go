package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/malha-mesh/malha/internal/identity/ca"
)

// PreviousName is the Secret that holds, while SecretName is being replaced, what was signed with before: so that a replica that
// starts meanwhile does as the others do. The leader makes it and removes it. Deleting it ends the trust in the old root at once.
const PreviousName = "malha-ca-previous"

// Annotations of PreviousName.
const (
	noteSuccessor = "malha.dev/successor"   // fingerprint of what SecretName holds since
	noteSince     = "malha.dev/replaced-at" // when that was seen
	rootPeriod    = 10 * time.Second        // between two looks at the Secrets
	acquaintance  = 2 * time.Minute         // how long everybody trusts a new root before anything is signed with it: proxies are told within some 40 s, and the kubelet brings the files of pods up to date in a minute and a half
	clockSlack    = time.Minute             // between the clocks of replicas
)

// rotation replaces what the authority of this replica signs with and is verified by, whenever SecretName does, and in an order in
// which nobody refuses anybody:
//
//	seen           everybody is given the roots of both, the old one signs
//	acquaintance   the new one signs; what the old one signed is still accepted
//	a leaf's life  nothing that the old one signed is valid any more: its roots go
//
// Replicas look for themselves and agree by PreviousName, which says what came before what, and since when.
type rotation struct {
	client    kubernetes.Interface
	namespace string
	authority *ca.Authority
	leading   func() bool // whether this replica writes
	rekeyed   func()      // told after the authority signs with another key
	told      *troubles
	log       *slog.Logger

	signing *ca.Material // what is signed with; look's own
	force   *ca.Material // the same with all roots that are trusted; look's own

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when the roots change
}

func newRotation(client kubernetes.Interface, namespace string, a *ca.Authority, of *ca.Material, told *troubles, log *slog.Logger) *rotation {
	return &rotation{
		client: client, namespace: namespace, authority: a, signing: of, force: of, told: told, log: log, changed: make(chan struct{}),
		leading: func() bool { return false }, rekeyed: func() {},
	}
}

// run looks until ctx ends.
func (r *rotation) run(ctx context.Context) error {
	tick := time.NewTicker(rootPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			r.look(ctx)
		}
	}
}

// each runs f with the roots in force, and anew whenever they change, until ctx ends.
func (r *rotation) each(ctx context.Context, f func(ctx context.Context, roots []byte)) {
	for ctx.Err() == nil {
		r.mu.Lock()
		roots, changed := r.authority.RootsPEM(), r.changed
		r.mu.Unlock()
		during, end := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { f(during, roots) })
		select {
		case <-changed:
		case <-ctx.Done():
		}
		end()
		wg.Wait()
	}
}

// previous is what PreviousName holds.
type previous struct {
	*ca.Material
	successor string
	since     time.Time
}

// step is what a look comes to.
type step struct {
	sign   *ca.Material
	trust  []*ca.Material // whose roots are trusted besides
	record *ca.Material   // what the leader writes to PreviousName, in place of what is there
	remove bool           // the leader removes PreviousName
}

// decide says what to do when SecretName holds now, PreviousName holds before (nil: it is not there), and signing is signed with.
func decide(at time.Time, now *ca.Material, before *previous, signing *ca.Material, ttl time.Duration) step {
	switch {
	case before == nil && signing.Equal(now):
		return step{sign: now}
	case before == nil:
		return step{sign: signing, trust: []*ca.Material{now}, record: signing}
	case before.successor == fingerprint(now):
		switch age := at.Sub(before.since); {
		case age < acquaintance:
			return step{sign: before.Material, trust: []*ca.Material{now}}
		case age < acquaintance+ttl+clockSlack:
			return step{sign: now, trust: []*ca.Material{before.Material}}
		}
		return step{sign: now, remove: true}
	}
	// It was replaced once more, before the end of the replacement that PreviousName is about: this one begins with what signs now.
	if signing.Equal(now) {
		signing = before.Material
	}
	return step{sign: signing, trust: []*ca.Material{before.Material, now}, record: signing}
}

// look finds out where a replacement is, if there is one, and does this replica's part in it.
func (r *rotation) look(ctx context.Context) {
	now, before, err := r.read(ctx)
	switch {
	case ctx.Err() != nil:
		return
	case apierrors.IsNotFound(err):
		r.told.waits(taskFresh, "it is gone: restore it from a copy. Otherwise the next replica that starts makes a new root, and this one is replaced by that")
		return
	case err != nil:
		r.told.fails(taskFresh, err)
		return
	}
	at := time.Now()
	if err := now.Check(at); err != nil {
		r.told.fails(taskFresh, fmt.Errorf("%w; the one before stays in force", err))
		return
	}
	s := decide(at, now, before, r.signing, r.authority.TTL())
	if s.sign.Check(at) != nil { // it expired: nothing that it signed is accepted any more, and there is nothing to wait for
		s = step{sign: now, remove: before != nil}
	}
	had := r.authority.Bundle()
	force, err := s.sign.With(s.trust...)
	if err == nil && !force.Equal(r.force) {
		err = r.authority.Replace(force)
	}
	if err != nil {
		r.told.fails(taskFresh, err)
		return
	}
	r.settle(s.sign, force, had != r.authority.Bundle())
	if !r.leading() {
		r.told.over(taskFresh)
		return
	}
	r.told.fails(taskFresh, r.write(ctx, &s, before, now))
}

// settle makes known what is in force now; changed is whether there are other roots than before.
func (r *rotation) settle(sign, force *ca.Material, changed bool) {
	rekeyed := !bytes.Equal(sign.Key, r.signing.Key)
	r.signing, r.force = sign, force
	if rekeyed {
		r.log.Info("certificates are signed with another authority", "roots", len(r.authority.Roots()))
		r.rekeyed()
	}
	if changed {
		r.log.Info("the roots of the mesh are others", "roots", len(r.authority.Roots()))
		r.mu.Lock()
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
	}
}

func (r *rotation) read(ctx context.Context) (now *ca.Material, before *previous, err error) {
	secrets := r.client.CoreV1().Secrets(r.namespace)
	s, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	p, err := secrets.Get(ctx, PreviousName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return materialOf(s), nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("reading Secret %s/%s: %w", r.namespace, PreviousName, err)
	}
	since, err := time.Parse(time.RFC3339, p.Annotations[noteSince])
	if err != nil { // somebody else's: it says nothing, and is in the way
		return materialOf(s), &previous{Material: materialOf(p)}, nil
	}
	return materialOf(s), &previous{materialOf(p), p.Annotations[noteSuccessor], since}, nil
}

// write brings PreviousName to what a step wants.
func (r *rotation) write(ctx context.Context, s *step, before *previous, now *ca.Material) error {
	secrets := r.client.CoreV1().Secrets(r.namespace)
	if before != nil && (s.remove || s.record != nil) {
		if err := absent(secrets.Delete(ctx, PreviousName, metav1.DeleteOptions{})); err != nil {
			return fmt.Errorf("removing Secret %s/%s: %w", r.namespace, PreviousName, err)
		}
		r.log.Info("what was signed with before is forgotten", "secret", PreviousName)
	}
	if s.record == nil {
		return nil
	}
	kept := s.record
	if before != nil {
		var err error
		if kept, err = kept.With(before.Material); err != nil {
			return err
		}
	}
	_, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: PreviousName, Namespace: r.namespace, Labels: partOf(),
			Annotations: map[string]string{noteSuccessor: fingerprint(now), noteSince: time.Now().UTC().Format(time.RFC3339)},
		},
		Type: secretType, Data: map[string][]byte{KeyCert: kept.Cert, KeyKey: kept.Key, KeyRoots: kept.Roots, KeyChain: kept.Chain},
	}, metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("keeping what was signed with in Secret %s/%s: %w", r.namespace, PreviousName, err)
	}
	r.log.Info("the Secret was replaced: its roots are trusted from now on, and it signs once everybody has them", "secret", SecretName, "in", acquaintance)
	return nil
}

// fingerprint names a material without telling its key.
func fingerprint(m *ca.Material) string {
	h := sha256.New()
	for _, part := range [][]byte{m.Cert, m.Roots, m.Chain} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}
