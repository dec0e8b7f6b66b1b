package trust

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

// Material is a plan.Secret made ready for TLS: a certificate with its key, authorities, revocations, or some of them. It
// is immutable.
type Material struct {
	secret      plan.Secret
	certificate *tls.Certificate    // nil: none
	authorities []*x509.Certificate // none: nobody is vouched for
	pool        *x509.CertPool      // of authorities
	revoked     map[string]revoked  // by the raw subject of the issuer
}

// revoked is what one authority took back.
type revoked struct {
	serials map[string]bool // big-endian bytes
	until   time.Time       // when the list is out of date; zero: it does not say
}

// NewMaterial reads a secret. The error names the secret and says what is wrong with it, and shows nothing of its key.
func NewMaterial(s *plan.Secret) (*Material, error) {
	m := &Material{secret: *s}
	fail := func(format string, a ...any) (*Material, error) {
		return nil, fmt.Errorf("secret %s: %w", s.Name, fmt.Errorf(format, a...))
	}
	if len(s.Certificate) > 0 || len(s.Key) > 0 {
		switch {
		case len(s.Key) == 0:
			return fail("it has a certificate (tls.crt) and no private key (tls.key)")
		case len(s.Certificate) == 0:
			return fail("it has a private key (tls.key) and no certificate (tls.crt)")
		}
		c, err := tls.X509KeyPair(s.Certificate, s.Key)
		if err != nil {
			// The messages of crypto/tls speak of PEM types and of which half does not fit; none quotes the input.
			return fail("its certificate and key can't be used together: %w", err)
		}
		m.certificate = &c
	}
	if len(s.Authorities) > 0 {
		var err error
		if m.authorities, err = certificates(s.Authorities); err != nil {
			return fail("its authorities (ca.crt): %w", err)
		}
		m.pool = x509.NewCertPool()
		for _, c := range m.authorities {
			m.pool.AddCert(c)
		}
	}
	if len(s.Revoked) > 0 {
		if m.pool == nil {
			return fail("it has a revocation list (ca.crl) and no authorities (ca.crt) to verify the list by")
		}
		if err := m.readRevoked(s.Revoked); err != nil {
			return fail("its revocation list (ca.crl): %w", err)
		}
	}
	if m.certificate == nil && m.pool == nil {
		return fail("it is empty: want a certificate with its key, or authorities")
	}
	return m, nil
}

// Is reports whether m was made from a secret like s.
func (m *Material) Is(s *plan.Secret) bool {
	return m.secret.Name == s.Name && bytes.Equal(m.secret.Certificate, s.Certificate) && bytes.Equal(m.secret.Key, s.Key) &&
		bytes.Equal(m.secret.Authorities, s.Authorities) && bytes.Equal(m.secret.Revoked, s.Revoked)
}

// Name returns the secret's name.
func (m *Material) Name() string { return m.secret.Name }

// Certificate returns the certificate with its key, nil when the secret has none.
func (m *Material) Certificate() *tls.Certificate { return m.certificate }

// Authorities returns whom the secret vouches for, nil when it says nothing about that.
func (m *Material) Authorities() *x509.CertPool { return m.pool }

// String keeps what is inside to itself.
func (m *Material) String() string { return m.secret.String() }

// GoString is String.
func (m *Material) GoString() string { return m.String() }

func certificates(in []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		block, in = pem.Decode(in)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out), err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return out, nil
}

// readRevoked reads revocation lists (RFC 5280 section 5), each of which an authority of m must have signed.
func (m *Material) readRevoked(in []byte) error {
	m.revoked = make(map[string]revoked)
	for n := 0; ; n++ {
		var block *pem.Block
		block, in = pem.Decode(in)
		if block == nil {
			if n == 0 {
				return errors.New("there is no list in PEM")
			}
			return nil
		}
		if block.Type != "X509 CRL" {
			return fmt.Errorf("it holds a %q, want \"X509 CRL\"", block.Type)
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return fmt.Errorf("list %d: %w", n, err)
		}
		i := slices.IndexFunc(m.authorities, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, list.RawIssuer) && list.CheckSignatureFrom(c) == nil
		})
		if i < 0 {
			return fmt.Errorf("list %d, of %s, is not signed by any of its authorities", n, list.Issuer)
		}
		r := revoked{serials: make(map[string]bool, len(list.RevokedCertificateEntries)), until: list.NextUpdate}
		for j := range list.RevokedCertificateEntries {
			r.serials[string(list.RevokedCertificateEntries[j].SerialNumber.Bytes())] = true
		}
		m.revoked[string(list.RawIssuer)] = r
	}
}

// checkRevoked checks a chain that was verified, leaf first and root last. Where there are lists, every certificate but the
// root must be covered by one that is up to date (as Envoy: who wants revocation wants it for the whole chain).
func (m *Material) checkRevoked(chain []*x509.Certificate, now time.Time) error {
	if len(m.revoked) == 0 {
		return nil
	}
	for _, c := range chain[:len(chain)-1] {
		r, ok := m.revoked[string(c.RawIssuer)]
		switch {
		case !ok:
			return fmt.Errorf("%w: secret %s has revocation lists, and none of %s", ErrPeer, m.Name(), c.Issuer)
		case !r.until.IsZero() && now.After(r.until):
			return fmt.Errorf("%w: the revocation list of %s in secret %s is out of date since %s", ErrPeer, c.Issuer, m.Name(), r.until.UTC().Format(time.RFC3339))
		case r.serials[string(c.SerialNumber.Bytes())]:
			return fmt.Errorf("%w: its certificate %s of %s was revoked", ErrPeer, c.SerialNumber.Text(16), c.Issuer)
		}
	}
	return nil
}

// verify checks that the authorities of m vouch for a peer's certificates, at the moment, for a usage, and that none was revoked.
func (m *Material) verify(certs []*x509.Certificate, usage x509.ExtKeyUsage, host string) error {
	switch {
	case len(certs) == 0:
		return fmt.Errorf("%w: it presented no certificate", ErrPeer)
	case len(certs) > maxChain:
		return fmt.Errorf("%w: it presented %d certificates, at most %d are looked at", ErrPeer, len(certs), maxChain)
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	now := time.Now()
	chains, err := certs[0].Verify(x509.VerifyOptions{
		Roots: m.pool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: host,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPeer, err)
	}
	for _, chain := range chains { // one that holds is enough
		if err = m.checkRevoked(chain, now); err == nil {
			return nil
		}
	}
	return err
}

// Materials are the secrets of a plan by name, and what is wrong with those that can't be used. The zero Materials has none.
type Materials struct {
	byName map[string]*Material
	broken map[string]error
}

// NewMaterials reads secrets, and takes over from before (nil: nothing) what did not change.
func NewMaterials(secrets []plan.Secret, before *Materials) *Materials {
	ms := &Materials{byName: make(map[string]*Material, len(secrets)), broken: make(map[string]error)}
	for i := range secrets {
		s := &secrets[i]
		if before != nil {
			if old := before.byName[s.Name]; old != nil && old.Is(s) {
				ms.byName[s.Name] = old
				continue
			}
		}
		m, err := NewMaterial(s)
		if err != nil {
			ms.broken[s.Name] = err
			continue
		}
		ms.byName[s.Name] = m
	}
	return ms
}

// Get returns a secret, or why there is none.
func (ms *Materials) Get(name string) (*Material, error) {
	if ms != nil {
		if m := ms.byName[name]; m != nil {
			return m, nil
		}
		if err := ms.broken[name]; err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("secret %s is missing: create it, or correct the name", name)
}

// GetCertificate is Get of one that must have a certificate with its key.
func (ms *Materials) GetCertificate(name string) (*Material, error) {
	m, err := ms.Get(name)
	if err == nil && m.certificate == nil {
		return nil, fmt.Errorf("secret %s has no certificate with its key (tls.crt, tls.key)", name)
	}
	return m, err
}

// GetAuthorities is Get of one that must have authorities.
func (ms *Materials) GetAuthorities(name string) (*Material, error) {
	m, err := ms.Get(name)
	if err == nil && m.pool == nil {
		return nil, fmt.Errorf("secret %s has no authorities (ca.crt)", name)
	}
	return m, err
}
