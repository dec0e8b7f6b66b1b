package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// readPlan reads a plan in JSON. A field that this proxy does not know is an error, and so is a plan that says nothing to do. It may
// come through a pipe, for whose writer it waits no longer than ctx.
func readPlan(ctx context.Context, path string) (*packed.Plan, error) {
	// O_NONBLOCK: to open a pipe waits for a writer otherwise, and cannot be interrupted (fifo(7)).
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("the plan can't be read: %w", err)
	}
	defer func() { _ = f.Close() }()
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })() // an error: it is a file, which nobody waits for
	p, err := packed.ReadJSON(f)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("it is empty, or only the beginning of one")
	case err != nil:
	case p.Node.Name.IsZero() || p.Node.Role != plan.Sidecar && p.Node.Role != plan.Gateway:
		err = errors.New("it does not say whose it is: node.name, and node.role, which is sidecar or gateway")
	case len(p.Listeners) == 0:
		err = errors.New("it has no listeners, so there would be nothing to do")
	}
	if err != nil {
		return nil, fmt.Errorf("the plan %s can't be used: %w (malha compile writes plans)", path, err)
	}
	return p, nil
}

// regular refuses what is there and is no file: to read a pipe or a device may never end, and these are read more than once.
func regular(paths ...string) error {
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file (%s); name a file, or a link to one", path, info.Mode())
		}
	}
	return nil
}

// readIdentity reads cert.pem, key.pem and roots.pem.
func readIdentity(dir string, now time.Time) (*trust.Credentials, error) {
	if err := regular(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "roots.pem")); err != nil {
		return nil, fmt.Errorf("the identity can't be read: %w", err)
	}
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
