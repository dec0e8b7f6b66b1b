package trust

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
)

// maxChain bounds the certificates of a peer before any signature is checked: work for strangers must be cheap.
const maxChain = 8

// Verify checks a peer's certificates (leaf first) as X.509-SVID sections 2 to 5 and RFC 5280 section 6 want it: the
// chain leads to one of roots at the time now (zero: the clock), the leaf carries usage explicitly, is no CA, may sign and
// may not sign certificates, and has exactly one URI, which is a workload identity. It returns that identity.
func Verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) (ident.Identity, error) {
	fail := func(format string, a ...any) (ident.Identity, error) {
		return ident.Identity{}, fmt.Errorf("%w: %w", ErrPeer, fmt.Errorf(format, a...))
	}
	switch {
	case len(chain) == 0:
		return fail("it presented no certificate")
	case len(chain) > maxChain:
		return fail("it presented %d certificates, at most %d are looked at", len(chain), maxChain)
	case roots == nil:
		return fail("there are no roots to verify it by") // x509 would take the system's: never what a mesh means
	}
	leaf := chain[0]
	if leaf.IsCA {
		return fail("its certificate is a CA's, not a workload's")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return fail("the key usage of its certificate is not a workload's (want digitalSignature, no keyCertSign, no cRLSign)")
	}
	if !slices.Contains(leaf.ExtKeyUsage, usage) {
		return fail("its certificate is not for TLS %s", usageName(usage)) // x509 would take "none" for "any"
	}
	id, err := IdentityOf(leaf)
	if err != nil {
		return ident.Identity{}, err
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return fail("certificate of %s: %w", id.URI(), err)
	}
	return id, nil
}

func usageName(u x509.ExtKeyUsage) string {
	switch u {
	case x509.ExtKeyUsageServerAuth:
		return "servers"
	case x509.ExtKeyUsageClientAuth:
		return "clients"
	default:
		return fmt.Sprintf("usage %d", u)
	}
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// tagURI is the context tag of uniformResourceIdentifier in GeneralName (RFC 5280 section 4.2.1.6).
const tagURI = 6

// IdentityOf returns the workload identity of a leaf certificate: its one URI name. It trusts nothing else in the
// certificate; a URI inside a DNS name, an email address or the common name counts for nothing (CVE-2022-21656).
//
// The bytes of the URI are taken as they stand. net/url would forgive them first: it lower-cases the scheme and drops an
// empty fragment, and two spellings of one identity are one too many.
func IdentityOf(leaf *x509.Certificate) (ident.Identity, error) {
	uris, err := rawURIs(leaf)
	if err != nil {
		return ident.Identity{}, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	if len(uris) != 1 {
		return ident.Identity{}, fmt.Errorf("%w: its certificate has %d URI names, want exactly one", ErrPeer, len(uris))
	}
	id, err := ident.ParseIdentity(uris[0])
	if err != nil {
		return ident.Identity{}, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	return id, nil
}

func rawURIs(c *x509.Certificate) ([]string, error) {
	var uris []string
	for _, ext := range c.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) > 0 {
			return nil, errors.New("its subject alternative names cannot be read")
		}
		for _, n := range names {
			if n.Class == asn1.ClassContextSpecific && n.Tag == tagURI {
				uris = append(uris, string(n.Bytes))
			}
		}
	}
	return uris, nil
}

func parseChain(der [][]byte) ([]*x509.Certificate, error) {
	if len(der) == 0 {
		return nil, fmt.Errorf("%w: there is no certificate", ErrPeer)
	}
	chain := make([]*x509.Certificate, len(der))
	for i, b := range der {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", ErrPeer, i, err)
		}
		chain[i] = c
	}
	return chain, nil
}
