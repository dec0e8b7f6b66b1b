package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// readPlan reads a plan in JSON. A field that this proxy does not know is an error.
func readPlan(path string) (*packed.Plan, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the plan can't be read: %w", err)
	}
	defer func() { _ = f.Close() }()
	p, err := packed.ReadJSON(f)
	if err != nil {
		return nil, fmt.Errorf("the plan %s can't be used: %w (malha compile writes plans)", path, err)
	}
	return p, nil
}

// readIdentity reads cert.pem, key.pem and roots.pem.
func readIdentity(dir string, now time.Time) (*trust.Credentials, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, fmt.Errorf("the identity in %s can't be read: %w", dir, err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "roots.pem"))
	if err != nil {
		return nil, fmt.Errorf("the identity in %s can't be read: %w", dir, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", filepath.Join(dir, "roots.pem"))
	}
	c, err := trust.New(cert, roots, now)
	if err != nil {
		return nil, fmt.Errorf("the identity in %s can't be used: %w", dir, err)
	}
	return c, nil
}

// needsIdentity returns what in p can't work without a certificate, in words; "" when everything can.
func needsIdentity(p *packed.Plan) string {
	for i := range p.Listeners {
		if l := &p.Listeners[i]; l.Direction == plan.Inbound && l.TLS == plan.TLSStrict {
			return fmt.Sprintf("listener %s takes only mutual TLS (%s)", l.Name, l.Origin)
		}
		for j := range p.Listeners[i].ServerNames {
			if sn := &p.Listeners[i].ServerNames[j]; sn.TLS != nil && sn.TLS.Mode == plan.ServeMesh {
				return fmt.Sprintf("listener %s ends mesh TLS for %v (%s)", p.Listeners[i].Name, sn.Names, sn.Origin)
			}
		}
	}
	for _, piece := range p.Clusters {
		if c := piece.Open(); c.TLS == plan.TLSMutual {
			return fmt.Sprintf("cluster %s speaks only mutual TLS (%s)", c.Name, c.Origin)
		}
	}
	for _, piece := range p.Endpoints {
		c := packed.Get(p.Clusters, piece.Name())
		if c == "" || c.Open().TLS == plan.TLSOff {
			continue
		}
		for _, e := range piece.Open().Endpoints {
			if !e.Identity.IsZero() && !e.Plaintext {
				return fmt.Sprintf("endpoint %s of cluster %s is %s, which is spoken to by mutual TLS", e.Address, c.Name(), e.Identity.URI())
			}
		}
	}
	return ""
}
