// Package ca issues the certificates of the mesh: who may have which identity is decided here and nowhere else.
//
// In: a root from a directory (made when there is none), signing requests with what their sender proved (a Workload).
// Out: short-lived leaf certificates with one SPIFFE id, the roots to verify them by, and tokens with which the workloads of
// one machine prove who they are. Nothing of a request is believed but its public key.
//
// Authority and Tokens are safe for concurrent use and start no goroutine. Open is the only function that touches the disk.
// Neighbours: wire/serve answers signing requests with an Authority and an Authenticator; identity/trust has the rules that
// the certificates must pass and the extension that carries the labels; identity/agent is the other side.
package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
)

// Lifetimes.
const (
	DefaultTTL = 24 * time.Hour
	// MinTTL is the shortest lifetime of a leaf: below it there is no time to renew.
	MinTTL  = time.Second
	rootTTL = 10 * 365 * 24 * time.Hour
	// backdate is how far a certificate reaches into the past, for peers whose clocks are behind ours.
	backdate = 2 * time.Minute
)

// The causes of a refusal, for errors.Is.
var (
	// ErrRequest says that a signing request is not acceptable.
	ErrRequest = errors.New("ca: bad signing request")
	// ErrToken says that a token proves nothing.
	ErrToken = errors.New("ca: token refused")
)

// Workload is what a caller has proved to be: the proxy of one workload.
type Workload struct {
	Node     ident.Name // the proxy, as the control plane names its plan
	Identity ident.Identity
	Labels   plan.WorkloadLabels // as peers will see them
}

// Options are the choices of an Authority.
type Options struct {
	// Dir holds the root: root.pem (certificate) and root-key.pem (PKCS #8, mode 0600). It is made when missing.
	// "" keeps the root in memory, for tests.
	Dir string
	// Material is used instead of Dir; nil: Dir.
	Material    *Material
	TrustDomain string           // default ident.DefaultTrustDomain
	TTL         time.Duration    // of leaf certificates; default DefaultTTL, at least MinTTL
	Now         func() time.Time // default time.Now
}

// Authority signs certificates for one trust domain.
type Authority struct {
	trustDomain string
	ttl         time.Duration
	now         func() time.Time
	signer      atomic.Pointer[signer] // replaced as a whole, never changed
}

// Open loads the root from o.Dir, or makes one.
func Open(o Options) (*Authority, error) {
	if o.TrustDomain == "" {
		o.TrustDomain = ident.DefaultTrustDomain
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.TTL < MinTTL {
		return nil, fmt.Errorf("ca: a certificate lifetime of %s is too short to renew in: use at least %s", o.TTL, MinTTL)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	// Also refuses a trust domain that would not parse back out of a SPIFFE id.
	if _, err := ident.ParseIdentity((ident.Identity{TrustDomain: o.TrustDomain, Namespace: "a", ServiceAccount: "a"}).URI()); err != nil {
		return nil, fmt.Errorf("ca: trust domain %q: %w", o.TrustDomain, err)
	}
	a := &Authority{trustDomain: o.TrustDomain, ttl: o.TTL, now: o.Now}
	if o.Material != nil {
		return a, a.Replace(o.Material)
	}
	root, key, err := openRoot(o)
	if err != nil {
		return nil, err
	}
	a.signer.Store(&signer{cert: root, key: key, roots: []*x509.Certificate{root}})
	return a, nil
}

// Replace makes m what is signed with and verified by from now on. Whoever was given roots before has to be given these: Bundle tells
// them apart. On error nothing changes.
func (a *Authority) Replace(m *Material) error {
	s, err := m.read(a.now())
	if err == nil {
		a.signer.Store(s)
	}
	return err
}

// TrustDomain returns the trust domain that the authority signs for.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// TTL returns the lifetime of the certificates that the authority signs.
func (a *Authority) TTL() time.Duration { return a.ttl }

// Roots returns the certificates (DER) that everybody in the mesh verifies peers by. It is a list because there are two
// while a root is being replaced.
func (a *Authority) Roots() [][]byte { return a.signer.Load().bundle() }

// Bundle names Roots: the same for the same set of roots.
func (a *Authority) Bundle() trust.Bundle { return trust.BundleOf(a.Roots()) }

// RootsPEM returns Roots as a PEM bundle, for a file that proxies start from.
func (a *Authority) RootsPEM() []byte {
	var out []byte
	for _, der := range a.Roots() {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// Pool returns Roots as a pool.
func (a *Authority) Pool() *x509.CertPool { return a.signer.Load().pool() }

// Derive returns 32 secret bytes for a purpose (RFC 5869): the same as long as the authority's key is the same, and of no use to
// find that key or what was derived for other purposes.
func (a *Authority) Derive(purpose string) ([]byte, error) {
	key, err := a.signer.Load().key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("ca: deriving a key: %w", err)
	}
	return hkdf.Key(sha256.New, key, nil, purpose, sha256.Size)
}

// Sign returns a certificate for w and the public key of a PKCS #10 request (DER), leaf first. The request must be signed
// with its key (RFC 2986 section 3: proof of possession), and the key must be of P-256; its subject, names and
// extensions are not looked at, since it is not the requester who decides who it is.
func (a *Authority) Sign(csr []byte, w Workload) ([][]byte, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: it is not signed with its own key: %w", ErrRequest, err)
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: want an ECDSA P-256 key", ErrRequest)
	}
	return a.sign(a.signer.Load(), pub, w)
}

func (a *Authority) sign(s *signer, pub *ecdsa.PublicKey, w Workload) ([][]byte, error) {
	if err := a.check(w); err != nil {
		return nil, err
	}
	notBefore, notAfter, err := s.life(a.now(), a.ttl)
	if err != nil {
		return nil, err
	}
	san, err := subjectAltName(w.Identity)
	if err != nil {
		return nil, err
	}
	workload, err := trust.WorkloadExtension(w.Node, w.Labels)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		// cA false, spelled out: X.509-SVID section 4.1.
		BasicConstraintsValid: true,
	}
	leaf.ExtraExtensions = append(leaf.ExtraExtensions, san, workload)
	der, err := x509.CreateCertificate(rand.Reader, leaf, s.cert, pub, s.key)
	if err != nil {
		return nil, fmt.Errorf("ca: signing for %s: %w", w.Identity.URI(), err)
	}
	return append([][]byte{der}, s.above...), nil
}

// check is the last line of defence against a caller that authenticates badly: only well-formed identities of our own
// trust domain leave this package, and a proxy lives in the namespace of its identity.
func (a *Authority) check(w Workload) error {
	id, err := ident.ParseIdentity(w.Identity.URI())
	if err != nil || id != w.Identity {
		return fmt.Errorf("%w: %q is not a workload identity", ErrRequest, w.Identity.URI())
	}
	if w.Identity.TrustDomain != a.trustDomain {
		return fmt.Errorf("%w: %s is not of trust domain %s", ErrRequest, w.Identity.URI(), a.trustDomain)
	}
	if !w.Node.IsZero() && w.Node.Namespace != w.Identity.Namespace {
		return fmt.Errorf("%w: proxy %s cannot be %s: they are of different namespaces", ErrRequest, w.Node, w.Identity.URI())
	}
	return nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// subjectAltName returns the extension with the one URI. x509 can write it too, but not mark it critical, as it must be
// when the subject is empty (RFC 5280 section 4.2.1.6).
func subjectAltName(id ident.Identity) (pkix.Extension, error) {
	uri := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(id.URI())}
	der, err := asn1.Marshal([]asn1.RawValue{uri})
	return pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: der}, err
}

// newSerial returns 127 random bits: unguessable, positive and short enough for RFC 5280 section 4.1.2.2.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("ca: no random number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// Credentials makes a key and a certificate for w in this process: for the control plane itself.
func (a *Authority) Credentials(w Workload) (*trust.Credentials, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("ca: making a key: %w", err)
	}
	s := a.signer.Load()
	chain, err := a.sign(s, &key.PublicKey, w)
	if err != nil {
		return nil, err
	}
	c, err := trust.New(tls.Certificate{Certificate: chain, PrivateKey: key}, s.pool(), a.now())
	if err != nil {
		return nil, err
	}
	c.Bundle = trust.BundleOf(s.bundle())
	return c, nil
}

// Source returns credentials for w that renew themselves when half of their life is over and after Replace, whenever somebody asks.
func (a *Authority) Source(w Workload) trust.Source { return &source{a: a, w: w} }

type source struct {
	a *Authority
	w Workload

	mu      sync.Mutex
	current *trust.Credentials
	renew   time.Time
	of      *signer // that made current
}

// Current signs with a key in memory: some 50 µs, once in half a lifetime.
func (s *source) Current() *trust.Credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, of := s.a.now().Round(0), s.a.signer.Load() // by the clock on the wall, also after the machine has slept
	if s.current == nil || s.of != of || !now.Before(s.renew) {
		if c, err := s.a.Credentials(s.w); err == nil {
			s.current, s.of, s.renew = c, of, now.Add(c.NotAfter.Sub(now)/2)
		}
	}
	return s.current
}
