package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/malha-mesh/malha/internal/identity/ca"
)

// WebhookName is the name of both webhook configurations, which the chart makes.
const WebhookName = "malha"

// webhookTTL is the life of the webhooks' serving certificate; it is made anew at half of it, in memory, so none can be left to
// expire.
const webhookTTL = 24 * time.Hour

// certificates make the certificate that the API server is shown.
type certificates struct {
	authority *ca.Authority
	names     []string
	now       func() time.Time

	mu    sync.Mutex
	cert  *tls.Certificate
	renew time.Time
	roots [sha256.Size]byte // of the authority that signed cert
}

// certificate is tls.Config.GetCertificate.
func (s *certificates) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, roots := s.now(), s.authority.Bundle(); s.cert == nil || s.roots != roots || !now.Before(s.renew) {
		c, err := s.authority.ServerCertificate(webhookTTL, s.names...)
		if err != nil {
			return nil, err
		}
		s.cert, s.roots, s.renew = c, roots, now.Add(c.Leaf.NotAfter.Sub(now)/2)
	}
	return s.cert, nil
}

// webhooks tells the API server by which roots to verify us, where the chart left that out, and again when somebody changes it.
type webhooks struct {
	client kubernetes.Interface
	roots  []byte
	log    *slog.Logger
	told   *troubles
}

func (w *webhooks) run(ctx context.Context) {
	f := informers.NewSharedInformerFactory(w.client, 0)
	wake := make(chan struct{}, 1)
	api := w.client.AdmissionregistrationV1()
	_, err := informer(w.told, taskMutating, wake, f, &admissionv1.MutatingWebhookConfiguration{}, api.MutatingWebhookConfigurations(), named(WebhookName))
	_, other := informer(w.told, taskValidating, wake, f, &admissionv1.ValidatingWebhookConfiguration{}, api.ValidatingWebhookConfigurations(), named(WebhookName))
	if err := errors.Join(err, other); err != nil {
		w.log.Error("webhook configurations cannot be watched", "error", err)
		return
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	// Writing asks anew: it need not wait for what only wakes it, and one that may not be watched keeps nobody from the other.
	settle(ctx, wake, 20*time.Millisecond, func() bool {
		done := true
		for _, k := range []struct {
			task
			write func(context.Context) error
		}{{taskMutating, w.mutating}, {taskValidating, w.validating}} {
			err := k.write(ctx)
			if ctx.Err() != nil {
				return false
			}
			told := w.told.tried(k.task, err)
			if err != nil {
				done = false
			}
			if err != nil && !told {
				w.log.Warn("the API server does not know whom to trust behind a webhook, will try again: injection or validation does not work", "task", k.what, "error", err)
			}
		}
		return done
	})
}

func (w *webhooks) mutating(ctx context.Context) error {
	return rewrite(ctx, w.client.AdmissionregistrationV1().MutatingWebhookConfigurations(), func(c *admissionv1.MutatingWebhookConfiguration) (changed bool) {
		for i := range c.Webhooks {
			changed = w.trust(&c.Webhooks[i].ClientConfig) || changed
		}
		return changed
	})
}

func (w *webhooks) validating(ctx context.Context) error {
	return rewrite(ctx, w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations(), func(c *admissionv1.ValidatingWebhookConfiguration) (changed bool) {
		for i := range c.Webhooks {
			changed = w.trust(&c.Webhooks[i].ClientConfig) || changed
		}
		return changed
	})
}

// configurations is what the clients of both kinds of webhook configurations have in common.
type configurations[T any] interface {
	Get(context.Context, string, metav1.GetOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
}

// rewrite reads the configuration called WebhookName and writes it if change reports that it did. One that is not there is left so.
func rewrite[T any](ctx context.Context, api configurations[T], change func(T) bool) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		c, err := api.Get(ctx, WebhookName, metav1.GetOptions{})
		if err != nil {
			return absent(err)
		}
		if change(c) {
			_, err = api.Update(ctx, c, metav1.UpdateOptions{FieldManager: fieldManager})
		}
		return err
	})
}

// trust sets the roots, and reports whether they were others.
func (w *webhooks) trust(c *admissionv1.WebhookClientConfig) bool {
	if c.Service == nil || bytes.Equal(c.CABundle, w.roots) {
		return false
	}
	c.CABundle = w.roots
	return true
}

// absent forgives that something is not there.
func absent(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
