package main

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
)

// identity is a certificate (ECDSA P-256, as the mesh has them) in files that every program under test reads.
type identity struct{ dir string }

// identities makes a root, and the two ends of a mesh connection.
func (a *arena) identities() (client, server *identity, err error) {
	authority, err := ca.Open(ca.Options{})
	if err != nil {
		return nil, nil, err
	}
	if client, err = a.identity(authority, clientIdentity); err != nil {
		return nil, nil, err
	}
	server, err = a.identity(authority, serverIdentity)
	return client, server, err
}

func (a *arena) identity(authority *ca.Authority, id ident.Identity) (*identity, error) {
	n := node(id)
	c, err := authority.Credentials(ca.Workload{Node: n.Name, Identity: id, Labels: n.Workload})
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.Certificate.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, err
	}
	var cert []byte
	for _, b := range c.Certificate.Certificate {
		cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b})...)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	dir := filepath.Join(a.dir, "identity-"+id.ServiceAccount)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for name, b := range map[string][]byte{"cert.pem": cert, "key.pem": key, "roots.pem": authority.RootsPEM(), "both.pem": append(cert, key...)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return nil, err
		}
	}
	return &identity{dir: dir}, nil
}
