package kube

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	source "github.com/malha-mesh/malha/internal/config/kube"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/identity/trust"
)

// put makes m what SecretName holds.
func put(t *testing.T, client kubernetes.Interface, m *ca.Material) {
	t.Helper()
	secrets := client.CoreV1().Secrets(source.RootNamespace)
	s, err := secrets.Get(t.Context(), SecretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s = s.DeepCopy()
	s.Data = map[string][]byte{KeyCert: m.Cert, KeyKey: m.Key, KeyRoots: m.Roots, KeyChain: m.Chain}
	// Not by the client: what that asks is the control plane's.
	if err := client.(*fake.Clientset).Tracker().Update(corev1.SchemeGroupVersion.WithResource("secrets"), s, source.RootNamespace); err != nil {
		t.Fatal(err)
	}
}

func fresh(t *testing.T) *ca.Material {
	t.Helper()
	m, err := ca.NewMaterial("")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// replica starts a control plane's part in replacing roots, as Server.serve does.
func replica(t *testing.T, client kubernetes.Interface, ttl time.Duration, told *troubles) *rotation {
	t.Helper()
	o := Options{CertTTL: ttl}
	o.defaults()
	a, m, err := openAuthority(t.Context(), client, &o, quiet, told)
	if err != nil {
		t.Fatal(err)
	}
	r := newRotation(client, o.Namespace, a, m, told, quiet)
	r.look(t.Context())
	return r
}

// replaceTwice asks all that replacing a root asks of the API server.
func replaceTwice(t *testing.T, client kubernetes.Interface) {
	r := replica(t, client, time.Hour, newTroubles(quiet))
	r.leading = func() bool { return true }
	for range 2 {
		put(t, client, fresh(t))
		r.look(t.Context())
	}
}

// leaf is a certificate that somebody has, and what it was given to verify others by.
type leaf struct {
	by    string
	chain []*x509.Certificate
	roots *x509.CertPool
	until time.Time
}

func signed(t *testing.T, by string, a *ca.Authority) leaf {
	t.Helper()
	w := ca.Workload{Node: ident.Name{Namespace: "shop", Name: "web"}, Identity: ident.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}}
	c, err := a.Credentials(w)
	if err != nil {
		t.Fatal(err)
	}
	l := leaf{by: by, roots: a.Pool(), until: c.NotAfter}
	for _, der := range c.Certificate.Certificate {
		x, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		l.chain = append(l.chain, x)
	}
	return l
}

// refused says which of the leaves another one's owner refuses now.
func refused(leaves []leaf) string {
	for _, a := range leaves {
		for _, b := range leaves {
			if _, err := trust.Verify(a.chain, b.roots, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
				return fmt.Sprintf("%s refuses what %s got: %v", b.by, a.by, err)
			}
		}
	}
	return ""
}

// TestRotation replaces the root under three replicas, one of which is started anew at every step, and the proxies that they sign
// for: they hold what they were given until it is half over, and are told of other roots within a minute, as wire/serve does it. Nobody
// refuses anybody at any time, and in the end nothing of the old root is left.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 20 * time.Minute
		client := fake.NewClientset()
		old, next := &ca.Material{}, fresh(t)
		told := newTroubles(quiet)
		replicas := []*rotation{replica(t, client, ttl, told), replica(t, client, ttl, told), replica(t, client, ttl, told)}
		*old = *replicas[0].signing
		replicas[1].leading = func() bool { return true }
		proxies := make([]leaf, 6)
		bundles := make([]trust.Bundle, len(proxies))
		heard := make([]time.Time, len(proxies)) // when a proxy's replica had other roots first
		born := make([]time.Time, len(proxies))
		for i := range proxies {
			proxies[i], bundles[i], born[i] = signed(t, fmt.Sprint("proxy ", i), replicas[i%3].authority), replicas[i%3].authority.Bundle(), time.Now()
		}
		put(t, client, next)
		start := time.Now()
		var switched, forgotten time.Duration
		for ; time.Since(start) < 3*ttl; time.Sleep(5 * time.Second) {
			at := time.Since(start)
			for i, r := range replicas {
				if int(at/(5*time.Second))%2 == i%2 { // every rootPeriod, not all at once
					r.look(t.Context())
				}
			}
			if at%(7*time.Minute) == 0 { // one is replaced
				replicas[2] = replica(t, client, ttl, told)
			}
			renewed := false
			for i := range proxies {
				a := replicas[(i+int(at/time.Minute))%3].authority
				switch {
				case bundles[i] == a.Bundle():
					heard[i] = time.Time{}
				case heard[i].IsZero():
					heard[i] = time.Now()
				}
				tell := !heard[i].IsZero() && time.Since(heard[i]) >= time.Duration(7*i)*time.Second
				if tell || time.Since(born[i]) > ttl/2+time.Duration(10*i)*time.Second {
					renewed = true
					proxies[i], bundles[i], born[i] = signed(t, fmt.Sprint("proxy ", i), a), a.Bundle(), time.Now()
				}
			}
			if renewed || at%time.Minute == 0 {
				if what := refused(proxies); what != "" {
					t.Fatalf("%s after the Secret was replaced: %s", at, what)
				}
			}
			if switched == 0 && string(replicas[0].signing.Key) == string(next.Key) {
				switched = at
			}
			if forgotten == 0 && switched != 0 && len(replicas[0].authority.Roots()) == 1 {
				forgotten = at
			}
		}
		if switched < acquaintance || switched > acquaintance+3*rootPeriod {
			t.Errorf("the new root signs after %s, want %s", switched, acquaintance)
		}
		if forgotten < acquaintance+ttl || forgotten > acquaintance+ttl+clockSlack+3*rootPeriod {
			t.Errorf("the old root is trusted for %s, want the life of what it signed last", forgotten)
		}
		for i, r := range replicas {
			if !r.signing.Equal(next) || len(r.authority.Roots()) != 1 {
				t.Errorf("replica %d is not done", i)
			}
		}
		if _, err := client.CoreV1().Secrets(source.RootNamespace).Get(t.Context(), PreviousName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the old key is still there: %v", err)
		}
		if ds := told.diagnostics(); len(ds) > 0 {
			t.Errorf("told: %v", ds)
		}
	})
}

// TestDecide has what TestRotation does not meet.
func TestDecide(t *testing.T) {
	a, b, c := fresh(t), fresh(t), fresh(t)
	at := time.Now()
	since := func(m, successor *ca.Material, ago time.Duration) *previous {
		return &previous{m, fingerprint(successor), at.Add(-ago)}
	}
	for _, test := range []struct {
		what         string
		now          *ca.Material
		before       *previous
		signing      *ca.Material
		sign, record *ca.Material
		trust        []*ca.Material
		remove       bool
	}{
		{what: "nothing happened", now: a, signing: a, sign: a},
		{what: "replaced, and nobody leads yet", now: b, signing: a, sign: a, record: a, trust: []*ca.Material{b}},
		{what: "a replica starts in the middle", now: b, before: since(a, b, time.Minute), signing: b, sign: a, trust: []*ca.Material{b}},
		{what: "replaced twice before the new one signed", now: c, before: since(a, b, time.Minute), signing: a, sign: a, record: a, trust: []*ca.Material{a, c}},
		{what: "replaced twice, when the new one signs", now: c, before: since(a, b, time.Hour), signing: b, sign: b, record: b, trust: []*ca.Material{a, c}},
		{what: "a replica starts before the leader saw the second", now: c, before: since(a, b, time.Minute), signing: c, sign: a, record: a, trust: []*ca.Material{a, c}},
		{what: "put back", now: a, before: since(a, b, time.Hour), signing: b, sign: b, record: b, trust: []*ca.Material{a, a}},
		{what: "over", now: b, before: since(a, b, 100*time.Hour), signing: b, sign: b, remove: true},
		{what: "the old one was deleted by hand", now: b, signing: b, sign: b},
	} {
		got := decide(at, test.now, test.before, test.signing, time.Hour*24)
		same := got.sign.Equal(test.sign) && got.remove == test.remove && len(got.trust) == len(test.trust) && (got.record == nil) == (test.record == nil)
		for i := range test.trust {
			same = same && got.trust[i].Equal(test.trust[i])
		}
		if !same || got.record != nil && !got.record.Equal(test.record) {
			t.Errorf("%s: got %+v", test.what, got)
		}
	}
}

// TestSecretCannotBeTaken: what is wrong with the Secret is told with the next step, and what was signed with stays.
func TestSecretCannotBeTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		told := newTroubles(quiet)
		r := replica(t, client, 0, told)
		r.leading = func() bool { return true }
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error, 1)
		was, first := *r.signing, r.authority.Bundle()
		go func() { done <- r.run(ctx) }()
		said := func(when, want string) {
			t.Helper()
			pause(rootPeriod + time.Second)
			ds := told.diagnostics()
			if want == "" && len(ds) > 0 || want != "" && (len(ds) != 1 || !strings.Contains(ds[0].Hint, want)) {
				t.Errorf("%s: %v", when, ds)
			}
			if r.authority.Bundle() != first {
				t.Errorf("%s: the roots are others", when)
			}
		}
		said("as it was", "")
		put(t, client, &ca.Material{Cert: was.Cert, Key: fresh(t).Key, Roots: was.Roots})
		said("another's key", "the one before stays in force")
		put(t, client, &was)
		said("put back", "")
		refuse := true
		client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			if refuse {
				return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), "", errors.New(`User "malhad" cannot create resource "secrets"`))
			}
			return false, nil, nil
		})
		put(t, client, fresh(t))
		pause(rootPeriod + time.Second)
		if ds := told.diagnostics(); len(ds) != 1 || ds[0].Code != CodeMayNot {
			t.Errorf("without the right to keep the old one: %v", ds)
		}
		pause(2 * acquaintance)
		if string(r.signing.Key) != string(was.Key) {
			t.Error("it signs with the new one although other replicas can't know since when")
		}
		put(t, client, &was)
		refuse = false
		said("back again", "")
		if err := client.CoreV1().Secrets(source.RootNamespace).Delete(t.Context(), SecretName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		said("gone", "restore it")
		end()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestDependents: who writes roots somewhere is begun anew with the new ones.
func TestDependents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		r := replica(t, client, 0, newTroubles(quiet))
		r.leading = func() bool { return true }
		during(t, func(ctx context.Context) {
			r.each(ctx, func(ctx context.Context, roots []byte) { (&bundles{client: client, roots: roots, log: quiet}).run(ctx) })
		}, func() {
			one := bundleOf(t, client, "shop")
			if one != string(r.authority.RootsPEM()) {
				t.Fatalf("no bundle: %q", one)
			}
			put(t, client, fresh(t))
			r.look(t.Context())
			pause(time.Second)
			if two := bundleOf(t, client, "shop"); two != string(r.authority.RootsPEM()) || two == one {
				t.Error("the bundle of a namespace is that of before")
			}
		})
	})
}
