package kube

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/malha-mesh/malha/internal/identity/ca"
)

// SecretName is the Secret in the mesh's namespace that holds what certificates are signed with. Its keys are those of Istio's
// "cacerts", so that an authority made for one serves the other.
const SecretName = "malha-ca"

// The keys of SecretName.
const (
	KeyCert  = "ca-cert.pem"
	KeyKey   = "ca-key.pem"
	KeyRoots = "root-cert.pem"
	KeyChain = "cert-chain.pem"
)

// readMaterial returns what the Secret holds, and makes it when there is none. Replicas that start together race to create it; one
// wins, and the others read what it wrote.
func readMaterial(ctx context.Context, client kubernetes.Interface, namespace, trustDomain string) (*ca.Material, error) {
	secrets := client.CoreV1().Secrets(namespace)
	for range 3 {
		s, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
		if err == nil {
			if len(s.Data[KeyCert]) == 0 || len(s.Data[KeyKey]) == 0 {
				return nil, fmt.Errorf("secret %s/%s has no %s or no %s: restore them, or delete the Secret to have a new root made, after which every proxy must be restarted",
					namespace, SecretName, KeyCert, KeyKey)
			}
			return materialOf(s), nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("reading Secret %s/%s: %w", namespace, SecretName, err)
		}
		m, err := ca.NewMaterial(trustDomain)
		if err != nil {
			return nil, err
		}
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: SecretName, Namespace: namespace, Labels: partOf()},
			Type:       secretType,
			Data:       map[string][]byte{KeyCert: m.Cert, KeyKey: m.Key, KeyRoots: m.Roots},
		}, metav1.CreateOptions{FieldManager: fieldManager})
		switch {
		case err == nil:
			return m, nil
		case !apierrors.IsAlreadyExists(err):
			return nil, fmt.Errorf("keeping the new root of the mesh in Secret %s/%s: %w", namespace, SecretName, err)
		}
	}
	return nil, fmt.Errorf("secret %s/%s comes and goes", namespace, SecretName)
}

// secretType tells these Secrets from others.
const secretType = "malha.dev/ca"

func materialOf(s *corev1.Secret) *ca.Material {
	return &ca.Material{Cert: s.Data[KeyCert], Key: s.Data[KeyKey], Roots: s.Data[KeyRoots], Chain: s.Data[KeyChain]}
}

// openAuthority waits for the API server, and for a Secret that can be used.
func openAuthority(ctx context.Context, client kubernetes.Interface, o *Options, log *slog.Logger, told *troubles) (*ca.Authority, *ca.Material, error) {
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		m, err := readMaterial(ctx, client, o.Namespace, o.TrustDomain)
		if err == nil {
			var a *ca.Authority
			if a, err = ca.Open(ca.Options{Material: m, TrustDomain: o.TrustDomain, TTL: o.CertTTL}); err == nil {
				told.fails(taskRoot, nil)
				return a, m, nil
			}
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		told.fails(taskRoot, err)
		log.Debug("no certificates can be signed yet", "error", err, "in", pause)
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}
