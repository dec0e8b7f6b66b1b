package trust

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/malha-mesh/malha/internal/plan"
)

// OriginConfig returns the client's side of TLS to a server outside of the mesh. secrets finds a secret by name, as
// Materials.Get does. host is the server as the request names it, for when t has no SNI. With alpn these protocols are
// offered; a server need not choose one.
//
// The server's chain must lead to the authorities of t, or else of the system, and its certificate must have one of the names
// of t or else the SNI's; with Insecure nothing of that. A secret that can't be had is an error, never a lesser check.
func OriginConfig(t *plan.ClientTLS, secrets func(name string) (*Material, error), host string, alpn []string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.SNI, NextProtos: slices.Clone(alpn)}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	if t.Secret != "" {
		m, err := secrets(t.Secret)
		if err != nil {
			return nil, err
		}
		if m.certificate == nil {
			return nil, fmt.Errorf("secret %s has no certificate with its key (tls.crt, tls.key)", t.Secret)
		}
		// Whatever authorities the server names: a client that was told to present this certificate has no other.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return m.certificate, nil }
	}
	vouch := &Material{} // a nil pool: those of the system
	if t.Authorities != "" {
		m, err := secrets(t.Authorities)
		if err != nil {
			return nil, err
		}
		if m.pool == nil {
			return nil, fmt.Errorf("secret %s has no authorities (ca.crt)", t.Authorities)
		}
		vouch = m
	}
	// It only switches off what crypto/tls does by itself, which knows no list of names and no revocation: VerifyConnection is
	// called for every handshake.
	cfg.InsecureSkipVerify = true
	if t.Insecure {
		return cfg, nil
	}
	name, names := cfg.ServerName, slices.Clone(t.SubjectAltNames)
	if len(names) > 0 {
		name = ""
	} else if name == "" {
		return nil, fmt.Errorf("there is no name to verify the server by: no SNI, no host and no subjectAltNames")
	}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := vouch.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, name); err != nil {
			return err
		}
		leaf := cs.PeerCertificates[0]
		if len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return hasName(leaf, n) }) {
			return fmt.Errorf("%w: its certificate has none of the names %q", ErrUnexpectedPeer, names)
		}
		return nil
	}
	return cfg, nil
}
