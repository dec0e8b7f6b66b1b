package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// Edge is a server's side of TLS at a gateway: one plan.ServerTLS with its secrets. It is immutable, and keeps the keys of
// the session tickets that it gives out.
type Edge struct {
	config *tls.Config
	plan   plan.ServerTLS
	http   bool
	used   []*Material
	vouch  *Material // of clients; nil: none is verified by a secret
	mesh   bool
	// Warnings say what is not as it was asked for, although the server can be used.
	Warnings []error
}

// The application protocols of strangers.
const (
	alpnH2    = "h2"
	alpnHTTP1 = "http/1.1"
)

// NewEdge makes the server's side of t. self is who we are in the mesh, for plan.ServeMesh. http says whether HTTP is spoken
// inside, so that versions of it are negotiated (RFC 7301); else nothing is.
//
// Of several certificates those that can't be used are left out, with a warning; none that can is an error, and so is
// everything that would let a client in who should stay out.
//
// Sessions are resumed only in mode simple: there is no client certificate that a resumption could skip, and each Edge has
// ticket keys of its own, so no ticket is worth anything at another server (RFC 8446 section 4.6.1; CVE-2025-23419,
// CVE-2025-68121). Everywhere else a handshake is whole.
func NewEdge(t *plan.ServerTLS, http bool, ms *Materials, self Source) (*Edge, error) {
	e := &Edge{plan: own(t), http: http}
	if t.Mode == plan.ServeMesh {
		return e, e.beMesh(self)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: t.MaxVersion, SessionTicketsDisabled: true}
	if t.MinVersion != 0 {
		cfg.MinVersion = t.MinVersion
	}
	if t.MaxVersion != 0 && cfg.MinVersion > t.MaxVersion {
		return nil, fmt.Errorf("the lowest TLS version, %s, is above the highest, %s", tls.VersionName(cfg.MinVersion), tls.VersionName(t.MaxVersion))
	}
	for _, v := range []uint16{cfg.MinVersion, t.MaxVersion} {
		if v != 0 && (v < tls.VersionTLS10 || v > tls.VersionTLS13) {
			return nil, fmt.Errorf("TLS version %#04x is none of 0x0301 to 0x0304", v)
		}
	}
	if err := e.ciphers(cfg); err != nil {
		return nil, err
	}
	if http {
		cfg.NextProtos = []string{alpnH2, alpnHTTP1}
		if t.HTTP1Only {
			cfg.NextProtos = []string{alpnHTTP1}
		}
	}
	if err := e.certificates(cfg, ms); err != nil {
		return nil, err
	}
	switch t.Mode {
	case plan.ServeSimple:
		cfg.SessionTicketsDisabled = false
	case plan.ServeMutual, plan.ServeOptionalMutual:
		if err := e.clients(cfg, ms); err != nil {
			return nil, err
		}
	case plan.ServeAnyClient:
		cfg.ClientAuth = tls.RequestClientCert
		if t.Authorities != "" { // which only tell clients what to send
			m, err := ms.GetAuthorities(t.Authorities)
			if err != nil {
				return nil, err
			}
			e.used, cfg.ClientCAs = append(e.used, m), m.pool
		}
	default:
		return nil, fmt.Errorf("TLS mode %q is not known to this proxy", t.Mode)
	}
	e.config = cfg
	return e, nil
}

// own returns a copy of t with strings of its own: an Edge outlives the listener that it came with, of which they are parts.
func own(t *plan.ServerTLS) plan.ServerTLS {
	c := *t
	c.Secrets, c.SubjectAltNames = slices.Clone(t.Secrets), slices.Clone(t.SubjectAltNames)
	parts := []*string{(*string)(&c.Mode), &c.Authorities}
	for _, list := range [][]string{c.Secrets, c.SubjectAltNames} {
		for i := range list {
			parts = append(parts, &list[i])
		}
	}
	packed.Own(parts...)
	return c
}

// Config returns the configuration for tls.Server. It must not be changed.
func (e *Edge) Config() *tls.Config { return e.config }

// Mesh reports whether peers are those of the mesh, see PeerOf.
func (e *Edge) Mesh() bool { return e.mesh }

// Same reports whether NewEdge would make e again: then it is kept, and with it the sessions of its clients.
func (e *Edge) Same(t *plan.ServerTLS, http bool, ms *Materials) bool {
	if e.http != http || len(e.Warnings) > 0 || !reflect.DeepEqual(&e.plan, t) {
		return false
	}
	names := slices.Clone(t.Secrets)
	if t.Authorities != "" {
		names = append(names, t.Authorities)
	}
	if e.mesh {
		return true
	}
	if len(names) != len(e.used) {
		return false
	}
	for i, name := range names {
		if m, err := ms.Get(name); err != nil || m != e.used[i] {
			return false
		}
	}
	return true
}

// Admits reports whether a client that old let in would be let in by e, as far as that is known: e asks for nothing that old did
// not ask for. Connections outlive the rules that they began with.
func (e *Edge) Admits(old *Edge) bool {
	if e.plan.Mode == plan.ServeSimple || e.plan.Mode == plan.ServeAnyClient {
		return true
	}
	a, b := e.plan, old.plan
	return a.Mode == b.Mode && e.vouch == old.vouch && slices.Equal(a.SubjectAltNames, b.SubjectAltNames) &&
		slices.EqualFunc(a.CertificateHashes, b.CertificateHashes, bytes.Equal) && slices.EqualFunc(a.KeyHashes, b.KeyHashes, bytes.Equal)
}

// beMesh is mesh TLS, whose rules are those of sidecars; the names of clients may be narrowed further.
func (e *Edge) beMesh(self Source) error {
	t := &e.plan
	if t.MaxVersion != 0 && t.MaxVersion < tls.VersionTLS13 {
		return errors.New("mesh TLS is TLS 1.3, which the highest version that is set excludes")
	}
	if self == nil {
		return ErrNoCredentials
	}
	protocols := []string{ALPNHTTP2, ALPNHTTP1, ALPNOpaque}
	if e.http && t.HTTP1Only {
		protocols = []string{ALPNHTTP1}
	}
	e.mesh = true
	e.config = ServerConfig(self, protocols)
	verify := e.config.VerifyConnection
	e.config.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return err
		}
		return e.checkClient(cs.PeerCertificates[0])
	}
	return nil
}

// ciphers sets the suites of TLS 1.2; those of 1.3 are not for choice. Suites that Go does not have are left out, which only
// narrows what clients may use.
func (e *Edge) ciphers(cfg *tls.Config) error {
	if len(e.plan.Ciphers) == 0 {
		return nil
	}
	known := append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
	for _, id := range e.plan.Ciphers {
		if slices.ContainsFunc(known, func(c *tls.CipherSuite) bool { return c.ID == id }) {
			cfg.CipherSuites = append(cfg.CipherSuites, id)
		} else {
			e.Warnings = append(e.Warnings, fmt.Errorf("cipher suite %#04x is not offered: this proxy does not have it", id))
		}
	}
	if len(cfg.CipherSuites) == 0 {
		return errors.New("none of its cipher suites is one that this proxy has")
	}
	return nil
}

func (e *Edge) certificates(cfg *tls.Config, ms *Materials) error {
	var why error
	for _, name := range e.plan.Secrets {
		m, err := ms.GetCertificate(name)
		if err != nil {
			why = errors.Join(why, err)
			continue
		}
		e.used = append(e.used, m)
		cfg.Certificates = append(cfg.Certificates, *m.certificate)
	}
	if len(cfg.Certificates) == 0 {
		if why == nil {
			why = errors.New("no secret is named that holds a certificate")
		}
		return why
	}
	if why != nil {
		e.Warnings = append(e.Warnings, why)
	}
	if len(cfg.Certificates) > 1 {
		certs := cfg.Certificates
		cfg.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return pick(certs, hello), nil }
	}
	return nil
}

// pick returns the first certificate that is for the name asked for and of a kind that the client can use; else the first that
// it can use; else the first.
func pick(certs []tls.Certificate, hello *tls.ClientHelloInfo) *tls.Certificate {
	for i := range certs {
		if hello.SupportsCertificate(&certs[i]) == nil {
			return &certs[i]
		}
	}
	nameless := *hello
	nameless.ServerName = ""
	for i := range certs {
		if nameless.SupportsCertificate(&certs[i]) == nil {
			return &certs[i]
		}
	}
	return &certs[0]
}

// clients asks for certificates of clients, and verifies them.
func (e *Edge) clients(cfg *tls.Config, ms *Materials) error {
	t := &e.plan
	if t.Authorities == "" {
		return errors.New("clients must be verified, and no secret says by whose certificates")
	}
	m, err := ms.GetAuthorities(t.Authorities)
	if err != nil {
		return err
	}
	e.used, e.vouch = append(e.used, m), m
	// crypto/tls checks that the client holds the key of what it presents; the rest is VerifyConnection's. ClientCAs only tells
	// clients which of their certificates to use.
	cfg.ClientCAs = m.pool
	cfg.ClientAuth = tls.RequireAnyClientCert
	optional := t.Mode == plan.ServeOptionalMutual
	if optional {
		cfg.ClientAuth = tls.RequestClientCert
	}
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if optional && len(cs.PeerCertificates) == 0 {
			return nil
		}
		if err := m.verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, ""); err != nil {
			return err
		}
		return e.checkClient(cs.PeerCertificates[0])
	}
	return nil
}

// checkClient holds a client's certificate, which was verified, to the names and hashes that are asked for.
func (e *Edge) checkClient(leaf *x509.Certificate) error {
	t := &e.plan
	if len(t.SubjectAltNames) > 0 && !slices.ContainsFunc(t.SubjectAltNames, func(n string) bool { return hasName(leaf, n) }) {
		return fmt.Errorf("%w: its certificate has none of the names %q", ErrUnexpectedPeer, t.SubjectAltNames)
	}
	if len(t.CertificateHashes) == 0 && len(t.KeyHashes) == 0 {
		return nil
	}
	cert, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	is := func(sum [sha256.Size]byte) func([]byte) bool {
		return func(want []byte) bool { return subtle.ConstantTimeCompare(sum[:], want) == 1 }
	}
	if slices.ContainsFunc(t.CertificateHashes, is(cert)) || slices.ContainsFunc(t.KeyHashes, is(key)) {
		return nil
	}
	return fmt.Errorf("%w: its certificate and key have none of the hashes that are asked for", ErrUnexpectedPeer)
}

// hasName reports whether a certificate has a name: a URI, an IP address, an email address, or a DNS name, of which a
// wildcard in the certificate covers one label (RFC 9525 section 6.3).
func hasName(leaf *x509.Certificate, name string) bool {
	if strings.Contains(name, "://") {
		uris, err := rawURIs(leaf)
		return err == nil && slices.Contains(uris, name)
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return slices.ContainsFunc(leaf.IPAddresses, func(b net.IP) bool {
			have, ok := netip.AddrFromSlice(b)
			return ok && have.Unmap() == ip.Unmap()
		})
	}
	if strings.Contains(name, "@") {
		return slices.Contains(leaf.EmailAddresses, name)
	}
	return slices.ContainsFunc(leaf.DNSNames, func(have string) bool {
		if strings.EqualFold(have, name) {
			return true
		}
		suffix, wild := strings.CutPrefix(have, "*.")
		_, rest, ok := strings.Cut(name, ".")
		return wild && ok && strings.EqualFold(suffix, rest)
	})
}
