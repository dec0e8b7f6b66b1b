package kube

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestBundleConflict: that somebody else wrote at the same time is not told to be a namespace without a bundle.
func TestBundleConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: BundleName}, Data: map[string]string{BundleKey: "old"},
		})
		conflicts := 0
		client.PrependReactor("update", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
			conflicts++
			return conflicts == 1, nil, apierrors.NewConflict(corev1.Resource("configmaps"), BundleName, errors.New("it changed"))
		})
		var said bytes.Buffer
		b := &bundles{client: client, roots: []byte("roots"), log: slog.New(slog.NewTextHandler(&said, nil))}
		during(t, b.run, func() {
			if got := bundleOf(t, client, "a"); got != "roots" || conflicts != 2 {
				t.Errorf("it has %q after %d writes", got, conflicts)
			}
		})
		if said.Len() > 0 {
			t.Errorf("told: %s", &said)
		}
	})
}
