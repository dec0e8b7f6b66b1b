package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// The causes of a failed handshake, for errors.Is.
var (
	// ErrNoCredentials says that no certificate was obtained yet.
	ErrNoCredentials = errors.New("trust: no credentials yet: no certificate was obtained from the control plane")
	// ErrPeer says that the peer did not prove an identity.
	ErrPeer = errors.New("trust: peer not verified")
	// ErrUnexpectedPeer says that the peer proved an identity, but not one that was expected.
	ErrUnexpectedPeer = errors.New("trust: unexpected peer")
)

// ServerConfig returns the server side of mesh TLS. The client must present a certificate that leads to the roots of
// src. With alpn, a client must offer one of these protocols; without, none is negotiated. Credentials are read from
// src at each handshake; while there are none, handshakes fail.
func ServerConfig(src Source, alpn []string) *tls.Config {
	cfg := base(alpn)
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(src) }
	// RequireAnyClientCert makes crypto/tls check the proof of possession of the key; VerifyConnection does the rest.
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := checkALPN(cs, alpn); err != nil {
			return err
		}
		_, err := verifyConnection(cs, src, x509.ExtKeyUsageClientAuth)
		return err
	}
	return cfg
}

// ClientConfig returns the client side of mesh TLS. The server must prove one of the identities in expect; when expect is
// empty nobody is acceptable and every handshake fails. sni is sent as it is ("" sends none). Our own certificate is
// sent only after the server was verified (RFC 8446 section 4.4: the server's flight comes first).
func ClientConfig(src Source, expect []ident.Identity, sni string, alpn []string) *tls.Config {
	expect = slices.Clone(expect)
	cfg := base(alpn)
	cfg.ServerName = sni
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate(src) }
	// It only switches off the check of DNS names, which SPIFFE certificates don't have: VerifyConnection below is
	// called for every handshake and checks chain, time, usage and identity.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := checkALPN(cs, alpn); err != nil {
			return err
		}
		id, err := verifyConnection(cs, src, x509.ExtKeyUsageServerAuth)
		if err != nil {
			return err
		}
		if !slices.Contains(expect, id) {
			return fmt.Errorf("%w: it is %s, want %s", ErrUnexpectedPeer, id.URI(), describe(expect))
		}
		return nil
	}
	return cfg
}

func base(alpn []string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             slices.Clone(alpn),
		SessionTicketsDisabled: true, // see the package comment; clients have no ClientSessionCache either
	}
}

func certificate(src Source) (*tls.Certificate, error) {
	c := src.Current()
	if c == nil {
		return nil, ErrNoCredentials
	}
	return &c.Certificate, nil
}

// checkALPN demands that one of alpn was agreed on. crypto/tls accepts a peer that negotiates nothing, which is how
// bytes of one protocol come to be read as another (ALPACA, CVE-2021-3618).
func checkALPN(cs tls.ConnectionState, alpn []string) error {
	if len(alpn) > 0 && !slices.Contains(alpn, cs.NegotiatedProtocol) {
		return fmt.Errorf("%w: it agreed to none of the protocols %q", ErrPeer, alpn)
	}
	return nil
}

func verifyConnection(cs tls.ConnectionState, src Source, usage x509.ExtKeyUsage) (ident.Identity, error) {
	c := src.Current()
	if c == nil {
		return ident.Identity{}, ErrNoCredentials
	}
	return Verify(cs.PeerCertificates, c.Roots, usage, time.Time{})
}

func describe(ids []ident.Identity) string {
	if len(ids) == 0 {
		return "nobody (no identity is known for this endpoint)"
	}
	s := ids[0].URI()
	if len(ids) > 1 {
		s += fmt.Sprintf(" or one of %d others", len(ids)-1)
	}
	return s
}

// PeerOf returns the identity and the labels of the peer of a connection that one of our configs has verified.
// It verifies nothing itself. The labels are what the peer's CA wrote into its certificate; for a foreign peer they
// are empty but for the namespace, which always is the identity's.
func PeerOf(cs tls.ConnectionState) (ident.Identity, plan.WorkloadLabels, error) {
	if len(cs.PeerCertificates) == 0 {
		return ident.Identity{}, plan.WorkloadLabels{}, fmt.Errorf("%w: it presented no certificate", ErrPeer)
	}
	leaf := cs.PeerCertificates[0]
	id, err := IdentityOf(leaf)
	if err != nil {
		return ident.Identity{}, plan.WorkloadLabels{}, err
	}
	_, labels := WorkloadOf(leaf, id)
	return id, labels, nil
}

// NodeOf returns the name of the proxy that the peer's certificate was issued to, zero when it names none. Like PeerOf
// it is for connections that are verified.
func NodeOf(cs tls.ConnectionState) (ident.Name, error) {
	if len(cs.PeerCertificates) == 0 {
		return ident.Name{}, fmt.Errorf("%w: it presented no certificate", ErrPeer)
	}
	id, err := IdentityOf(cs.PeerCertificates[0])
	if err != nil {
		return ident.Name{}, err
	}
	node, _ := WorkloadOf(cs.PeerCertificates[0], id)
	return node, nil
}
