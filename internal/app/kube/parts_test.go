package kube

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/plan"
)

var quiet = slog.New(slog.DiscardHandler)

func TestReplicasShareOneRoot(t *testing.T) {
	client := fake.NewClientset()
	const replicas = 4
	got := make([]*ca.Material, replicas)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = readMaterial(t.Context(), client, "malha-system", ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, m := range got {
		if m == nil || string(m.Cert) != string(got[0].Cert) || string(m.Key) != string(got[0].Key) {
			t.Fatal("replicas that start together sign with different roots")
		}
	}
	again, err := readMaterial(t.Context(), client, "malha-system", "")
	if err != nil || string(again.Roots) != string(got[0].Roots) {
		t.Errorf("a later replica: %v", err)
	}
}

func TestSecretWithoutKeyIsNotReplaced(t *testing.T) {
	client := fake.NewClientset(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "malha-system", Name: SecretName}, Data: map[string][]byte{KeyCert: []byte("x")},
	})
	if _, err := readMaterial(t.Context(), client, "malha-system", ""); err == nil || !strings.Contains(err.Error(), "restore") {
		t.Errorf("got %v, want what to do", err)
	}
}

func TestAuthorityWaitsForTheAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		away := time.Now().Add(30 * time.Second)
		client.PrependReactor("*", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			if time.Now().Before(away) {
				return true, nil, errors.New("connection refused")
			}
			return false, nil, nil
		})
		o := Options{}
		o.defaults()
		a, _, err := openAuthority(t.Context(), client, &o, quiet, nil)
		if err != nil || time.Now().Before(away) || a.TrustDomain() != ident.DefaultTrustDomain {
			t.Errorf("%v, %v", a, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		away = time.Now().Add(time.Hour)
		if _, _, err := openAuthority(ctx, client, &o, quiet, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the end was asked for: %v", err)
		}
	})
}

// reviewed is what an API server says of a good token.
func reviewed() authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{ca.Audience},
		User: authenticationv1.UserInfo{Username: "system:serviceaccount:shop:cart", Extra: map[string]authenticationv1.ExtraValue{
			claimPodName: {"cart-7d9-x"}, claimPodUID: {"1"},
		}},
	}
}

func TestBearer(t *testing.T) {
	good := reviewed()
	pod, account, err := bearer(&good)
	if want := (ident.Name{Namespace: "shop", Name: "cart-7d9-x"}); err != nil || pod != want || account != "cart" {
		t.Errorf("%v %v %v", pod, account, err)
	}
	for what, break_ := range map[string]func(*authenticationv1.TokenReviewStatus){
		"not authenticated":            func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false },
		"an error":                     func(s *authenticationv1.TokenReviewStatus) { s.Error = "expired" },
		"no audience":                  func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil },
		"another audience":             func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"vault"} },
		"a person":                     func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "alice" },
		"no account":                   func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:" },
		"no namespace":                 func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount::cart" },
		"more parts":                   func(s *authenticationv1.TokenReviewStatus) { s.User.Username += ":x" },
		"a node":                       func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:node:a" },
		"of the account, not of a pod": func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil },
		"of two pods": func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra[claimPodName] = authenticationv1.ExtraValue{"a", "b"}
		},
		"of no pod": func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra[claimPodName] = authenticationv1.ExtraValue{""}
		},
	} {
		s := reviewed()
		break_(&s)
		if pod, account, err := bearer(&s); err == nil {
			t.Errorf("%s: let in as %s %s", what, pod, account)
		}
	}
}

func TestAuthenticate(t *testing.T) {
	client := fake.NewClientset()
	status, fail := reviewed(), error(nil)
	var asked *authenticationv1.TokenReview
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked = a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		return true, &authenticationv1.TokenReview{Status: status}, fail
	})
	labels := plan.WorkloadLabels{Workload: "cart", Namespace: "shop", App: "cart"}
	r := &reviewer{client: client, trustDomain: "cluster.local", known: func(_ context.Context, n ident.Name) (plan.Node, bool) {
		return plan.Node{Name: n, Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart"}, Workload: labels}, true
	}}
	w, err := r.Authenticate(t.Context(), "secret")
	if err != nil || w.Identity.URI() != "spiffe://cluster.local/ns/shop/sa/cart" || w.Node.Name != "cart-7d9-x" || w.Labels != labels {
		t.Errorf("%+v, %v", w, err)
	}
	if asked.Spec.Token != "secret" || len(asked.Spec.Audiences) != 1 || asked.Spec.Audiences[0] != ca.Audience {
		t.Errorf("asked for %v", asked.Spec.Audiences)
	}
	status.Audiences = []string{"vault"}
	if w, err := r.Authenticate(t.Context(), "secret"); !errors.Is(err, ca.ErrToken) || w != (ca.Workload{}) {
		t.Errorf("a token for another: %+v, %v", w, err)
	}
	if _, err := r.Authenticate(t.Context(), strings.Repeat("x", maxToken+1)); !errors.Is(err, ca.ErrToken) {
		t.Errorf("a token that is too long: %v", err)
	}
	// The proxy must come again: it is not the token's fault.
	fail = apierrors.NewInternalError(errors.New("etcd is away"))
	if _, err := r.Authenticate(t.Context(), "secret"); err == nil || errors.Is(err, ca.ErrToken) {
		t.Errorf("while the API server is away: %v", err)
	}
}

func TestOneLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var broken atomic.Bool
		client.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return broken.Load(), nil, errors.New("connection refused")
		})
		var mu sync.Mutex
		leading := map[string]bool{}
		now := func() (out []string) {
			mu.Lock()
			defer mu.Unlock()
			for name := range leading {
				out = append(out, name)
			}
			return out
		}
		start := func(name string) context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = elect(ctx, client, "malha-system", name, quiet, nil, func(ctx context.Context) {
					mu.Lock()
					leading[name] = true
					mu.Unlock()
					<-ctx.Done()
					mu.Lock()
					delete(leading, name)
					mu.Unlock()
				})
			}()
			return func() { cancel(); <-done }
		}
		stopA := start("a")
		pause(time.Minute)
		if got := now(); len(got) != 1 || got[0] != "a" {
			t.Fatalf("leading: %v", got)
		}
		stopB := start("b")
		pause(time.Minute)
		if got := now(); len(got) != 1 || got[0] != "a" {
			t.Fatalf("leading beside another: %v", got)
		}
		stopA() // in order: it gives the lease back
		pause(2 * electRetry * 2)
		if got := now(); len(got) != 1 || got[0] != "b" {
			t.Fatalf("leading after the end of the first: %v", got)
		}
		// The API server goes away: who led stops to write, and leads again afterwards.
		broken.Store(true)
		pause(time.Minute)
		if got := now(); len(got) != 0 {
			t.Fatalf("leading without an API server: %v", got)
		}
		broken.Store(false)
		pause(time.Minute)
		if got := now(); len(got) != 1 {
			t.Fatalf("leading after the API server came back: %v", got)
		}
		stopB()
	})
}

// pause lets everything happen that happens within d, in a bubble.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// during runs a writer while f looks, in a bubble.
func during(t *testing.T, run func(context.Context), f func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	pause(time.Second)
	f()
	cancel()
	<-done
}

func bundleOf(t *testing.T, client kubernetes.Interface, namespace string) string {
	t.Helper()
	m, err := client.CoreV1().ConfigMaps(namespace).Get(t.Context(), BundleName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.Data[BundleKey]
}

func TestBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		namespace := func(name string) *corev1.Namespace {
			return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}}
		}
		going := namespace("going")
		going.Status.Phase = corev1.NamespaceTerminating
		client := fake.NewClientset(namespace("a"), namespace("b"), going, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: BundleName}, Data: map[string]string{BundleKey: "old", "mine": "kept"},
		})
		var refuse atomic.Bool
		refuse.Store(true)
		client.PrependReactor("create", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
			return refuse.Load() && a.GetNamespace() == "c", nil, errors.New("connection refused")
		})
		b := &bundles{client: client, roots: []byte("roots"), log: quiet}
		during(t, b.run, func() {
			if a, b := bundleOf(t, client, "a"), bundleOf(t, client, "b"); a != "roots" || b != "roots" {
				t.Errorf("a has %q, b has %q", a, b)
			}
			if m, _ := client.CoreV1().ConfigMaps("b").Get(t.Context(), BundleName, metav1.GetOptions{}); m.Data["mine"] != "kept" || m.Labels[labelPartOf] != "malha" {
				t.Errorf("what is not ours: %v %v", m.Data, m.Labels)
			}
			if got := bundleOf(t, client, "going"); got != "" {
				t.Errorf("a namespace that is going got %q", got)
			}
			if err := client.CoreV1().ConfigMaps("a").Delete(t.Context(), BundleName, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := client.CoreV1().Namespaces().Create(t.Context(), namespace("c"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			pause(time.Second)
			if got := bundleOf(t, client, "a"); got != "roots" {
				t.Errorf("one that was removed: %q", got)
			}
			refuse.Store(false)
			pause(time.Minute)
			if got := bundleOf(t, client, "c"); got != "roots" {
				t.Errorf("one that could not be written at first: %q", got)
			}
		})
	})
}

func TestWebhookRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, url := &admissionv1.ServiceReference{Name: "malhad"}, "https://elsewhere"
		client := fake.NewClientset(
			&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: WebhookName}, Webhooks: []admissionv1.MutatingWebhook{
				{Name: "a", ClientConfig: admissionv1.WebhookClientConfig{Service: service, CABundle: []byte("old")}},
				{Name: "b", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}},
			}},
			&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "another"}, Webhooks: []admissionv1.MutatingWebhook{
				{Name: "a", ClientConfig: admissionv1.WebhookClientConfig{Service: service, CABundle: []byte("theirs")}},
			}},
		)
		get := func(name string) *admissionv1.MutatingWebhookConfiguration {
			c, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		w := &webhooks{client: client, roots: []byte("roots"), log: quiet}
		during(t, w.run, func() {
			c := get(WebhookName)
			if string(c.Webhooks[0].ClientConfig.CABundle) != "roots" || c.Webhooks[1].ClientConfig.CABundle != nil {
				t.Errorf("bundles %q %q", c.Webhooks[0].ClientConfig.CABundle, c.Webhooks[1].ClientConfig.CABundle)
			}
			if got := get("another").Webhooks[0].ClientConfig.CABundle; string(got) != "theirs" {
				t.Errorf("another's configuration was changed: %q", got)
			}
			c.Webhooks[0].ClientConfig.CABundle = nil
			if _, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			// One that comes later, as when the chart is applied after the control plane started.
			if _, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionv1.ValidatingWebhookConfiguration{
				ObjectMeta: metav1.ObjectMeta{Name: WebhookName}, Webhooks: []admissionv1.ValidatingWebhook{{Name: "v", ClientConfig: admissionv1.WebhookClientConfig{Service: service}}},
			}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			pause(time.Second)
			if got := get(WebhookName).Webhooks[0].ClientConfig.CABundle; string(got) != "roots" {
				t.Errorf("after somebody took it away: %q", got)
			}
			v, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), WebhookName, metav1.GetOptions{})
			if err != nil || string(v.Webhooks[0].ClientConfig.CABundle) != "roots" {
				t.Errorf("the validating one: %v, %v", v, err)
			}
		})
	})
}

func TestWebhookCertificateRenewsItself(t *testing.T) {
	m, err := ca.NewMaterial("")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	a, err := ca.Open(ca.Options{Material: m, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	c := &certificates{authority: a, names: []string{"malhad.malha-system.svc"}, now: func() time.Time { return now }}
	first, err := c.certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := c.certificate(nil); again != first {
		t.Error("a new certificate for each handshake")
	}
	now = now.Add(webhookTTL/2 + time.Minute)
	next, err := c.certificate(nil)
	if err != nil || next == first || !next.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Errorf("at half of its life: %v", err)
	}
}
