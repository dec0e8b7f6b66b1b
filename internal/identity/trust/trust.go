// Package trust is what a mesh peer believes: who it is itself, whom it trusts, and how a peer proves who it is.
//
// In: Credentials (a certificate with its key, and the roots) from a Source, which the agent keeps fresh. Out: the
// *tls.Config of both ends of mesh TLS, and the verified identity of a connection's peer. The package does no I/O, starts
// no goroutine and writes nothing down; private keys stay inside tls.Certificate, and no type here prints one.
//
// Mesh TLS is TLS 1.3 with both sides verified. A peer is verified here and not by crypto/tls: a SPIFFE certificate has no
// DNS name to compare with a host, so crypto/tls could only check half. The rules are those of the X.509-SVID
// specification, in verify.go.
//
// Sessions of mesh TLS are never resumed. A resumed session skips the certificate exchange, so it would outlive a removed root, an
// expired certificate or a changed list of expected identities (CVE-2022-21654, CVE-2025-68121); proxies pool their
// connections and a P-256 handshake costs well under a millisecond, so there is little to win.
//
// Beside mesh TLS there is TLS with strangers: Material is a secret of the plan made ready, Edge the server's side at a gateway
// (edge.go), OriginConfig the client's side towards servers outside of the mesh (origin.go).
//
// Neighbours: identity/agent fills a Holder, identity/ca writes the certificates, proxy/server and proxy/upstream take
// the configs, wire/serve and wire/watch use the same rules for the control stream.
package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// The application protocols of mesh TLS (ALPN), with Istio's names. They differ from those of applications, so that mesh
// TLS and the TLS of a program cannot be taken for each other, and the server knows what it reads before the first byte.
const (
	ALPNHTTP1  = "istio-http/1.1"
	ALPNHTTP2  = "istio-h2"
	ALPNOpaque = "istio" // anything else, as opaque bytes
)

// Credentials are who we are and whom we trust, at one moment. They are immutable once they are in a Source.
type Credentials struct {
	Certificate tls.Certificate // leaf first, with its key; Certificate.Leaf is set
	Roots       *x509.CertPool  // whom we trust; for peers of both directions
	Bundle      Bundle          // names Roots; zero: they are not the control plane's to replace
	Identity    ident.Identity
	Node        ident.Name          // the proxy that the certificate is for; zero when it says nothing
	Workload    plan.WorkloadLabels // as peers will see us
	NotBefore   time.Time
	NotAfter    time.Time
}

// Bundle names a set of roots, whatever their order.
type Bundle [sha256.Size]byte

// BundleOf returns the name of roots (DER).
func BundleOf(roots [][]byte) Bundle {
	sums := make([][sha256.Size]byte, len(roots))
	for i, r := range roots {
		sums[i] = sha256.Sum256(r)
	}
	slices.SortFunc(sums, func(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) })
	h := sha256.New()
	for _, s := range slices.Compact(sums) {
		h.Write(s[:])
	}
	return Bundle(h.Sum(nil))
}

// LogValue keeps the key out of logs: it shows who and until when.
func (c *Credentials) LogValue() slog.Value {
	if c == nil {
		return slog.StringValue("none")
	}
	return slog.GroupValue(slog.String("identity", c.Identity.URI()), slog.Time("not_after", c.NotAfter))
}

// String is LogValue for fmt.
func (c *Credentials) String() string {
	if c == nil {
		return "no credentials"
	}
	return c.Identity.URI() + " until " + c.NotAfter.UTC().Format(time.RFC3339)
}

// GoString is String: %#v must not print a key either.
func (c *Credentials) GoString() string { return c.String() }

// Source gives the credentials of the moment.
type Source interface {
	// Current returns the credentials in force, nil until there are any. It never blocks; callers must not keep the
	// result for longer than a handshake.
	Current() *Credentials
}

// Static is a Source whose credentials never change.
type Static struct{ Credentials *Credentials }

// Current returns the credentials.
func (s Static) Current() *Credentials { return s.Credentials }

// Holder is a Source that is filled from outside, from any goroutine. The zero Holder is empty.
type Holder struct{ p atomic.Pointer[Credentials] }

// Current returns what was set last, or nil.
func (h *Holder) Current() *Credentials { return h.p.Load() }

// Set puts c in force for every handshake from now on. Connections that exist are left alone.
func (h *Holder) Set(c *Credentials) { h.p.Store(c) }

// New makes credentials from a certificate whose chain (leaf first) and key are set, and from roots. It checks that the
// chain leads to the roots at the time now and that the leaf is a workload's, and reads the rest from the leaf.
func New(cert tls.Certificate, roots *x509.CertPool, now time.Time) (*Credentials, error) {
	chain, err := parseChain(cert.Certificate)
	if err != nil {
		return nil, err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := Verify(chain, roots, usage, now); err != nil {
			return nil, err
		}
	}
	leaf := chain[0]
	id, err := IdentityOf(leaf)
	if err != nil {
		return nil, err
	}
	cert.Leaf = leaf
	node, labels := WorkloadOf(leaf, id)
	return &Credentials{
		Certificate: cert, Roots: roots, Identity: id, Node: node, Workload: labels,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
	}, nil
}
