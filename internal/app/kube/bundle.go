package kube

import (
	"context"
	"errors"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// BundleName is the ConfigMap in every namespace by which proxies verify the control plane, and BundleKey its key. A pod cannot
// mount a ConfigMap of another namespace, so each has its own.
const (
	BundleName = "malha-ca-root"
	BundleKey  = KeyRoots
)

// bundles keeps BundleName right in every namespace, also when somebody changes or removes it.
type bundles struct {
	client kubernetes.Interface
	roots  []byte
	log    *slog.Logger
	told   *troubles
}

// run writes until ctx ends.
func (b *bundles) run(ctx context.Context) {
	all, ours := informers.NewSharedInformerFactoryWithOptions(b.client, 0, informers.WithTransform(lean)), informers.NewSharedInformerFactory(b.client, 0)
	wake := make(chan struct{}, 1)
	namespaces, err := informer(b.told, taskBundle, wake, all, &corev1.Namespace{}, b.client.CoreV1().Namespaces(), unfiltered)
	// The right to read ConfigMaps is for this name alone.
	maps, other := informer(b.told, taskBundle, wake, ours, &corev1.ConfigMap{}, b.client.CoreV1().ConfigMaps(""), named(BundleName))
	if err := errors.Join(err, other); err != nil {
		b.log.Error("trust bundles cannot be watched", "error", err)
		return
	}
	all.Start(ctx.Done())
	ours.Start(ctx.Done())
	defer all.Shutdown()
	defer ours.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), namespaces.HasSynced, maps.HasSynced) {
		return
	}
	settle(ctx, wake, 20*time.Millisecond, func() bool {
		return b.all(ctx, listers.NewNamespaceLister(namespaces.GetIndexer()), listers.NewConfigMapLister(maps.GetIndexer()))
	})
}

// all brings every namespace to what it should have, and reports whether all of it could be done.
func (b *bundles) all(ctx context.Context, namespaces listers.NamespaceLister, maps listers.ConfigMapLister) bool {
	list, err := namespaces.List(labels.Everything())
	if err != nil {
		return false
	}
	done := true
	for _, ns := range list {
		if ns.Status.Phase == corev1.NamespaceTerminating || ns.DeletionTimestamp != nil {
			continue
		}
		have, err := maps.ConfigMaps(ns.Name).Get(BundleName)
		switch {
		case apierrors.IsNotFound(err):
			have = nil
		case err != nil:
			done = false
			continue
		case have.Data[BundleKey] == string(b.roots):
			continue
		}
		err = b.write(ctx, ns.Name, have)
		if ctx.Err() != nil {
			return false
		}
		if b.told.tried(taskBundle, err) {
			return false // nor any other
		}
		if err != nil {
			done = false
		}
		if err != nil && !apierrors.IsConflict(err) { // else somebody else wrote at the same time
			b.log.Warn("a namespace has no trust bundle, will try again: pods with a sidecar cannot start there", "namespace", ns.Name, "error", err)
		}
	}
	return done
}

// write puts the bundle into a namespace; have is what is there, nil nothing.
func (b *bundles) write(ctx context.Context, namespace string, have *corev1.ConfigMap) error {
	maps := b.client.CoreV1().ConfigMaps(namespace)
	if have == nil {
		_, err := maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: BundleName, Namespace: namespace, Labels: partOf()},
			Data:       map[string]string{BundleKey: string(b.roots)},
		}, metav1.CreateOptions{FieldManager: fieldManager})
		switch {
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
			return nil // it is going
		case apierrors.IsAlreadyExists(err):
			return nil // its event comes
		}
		return err
	}
	next := have.DeepCopy()
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	next.Data[BundleKey] = string(b.roots)
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	for k, v := range partOf() {
		next.Labels[k] = v
	}
	_, err := maps.Update(ctx, next, metav1.UpdateOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		return nil // its event comes
	}
	return err
}
