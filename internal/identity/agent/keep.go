package agent

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
)

// stateFile holds, as PEM: the key, the chain (leaf first) and the roots (as TRUSTED ROOT blocks).
const stateFile = "identity.pem"

const (
	blockKey  = "PRIVATE KEY"
	blockCert = "CERTIFICATE"
	blockRoot = "MALHA TRUSTED ROOT"
)

// load returns the credentials that an earlier run kept, nil when there are none that are still good.
func (a *Agent) load() *trust.Credentials {
	if a.o.StateDir == "" {
		return nil
	}
	c, err := readState(filepath.Join(a.o.StateDir, stateFile), time.Now())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		a.o.Log.Warn("the kept identity cannot be used, will ask for a new one", "error", err)
		return nil
	case c.Node != a.o.Node:
		a.o.Log.Warn("the kept identity is of another proxy, will ask for a new one", "kept", c.Node.String(), "node", a.o.Node.String())
		return nil
	}
	return c
}

func readState(path string, now time.Time) (*trust.Credentials, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if m := info.Mode().Perm(); m&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o), so its key may have leaked", path, m)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var cert tls.Certificate
	roots := x509.NewCertPool()
	var bundle [][]byte
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		switch block.Type {
		case blockKey:
			if cert.PrivateKey, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
				return nil, fmt.Errorf("%s: the key cannot be read", path) // err might quote it
			}
		case blockCert:
			cert.Certificate = append(cert.Certificate, block.Bytes)
		case blockRoot:
			root, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			roots.AddCert(root)
			bundle = append(bundle, block.Bytes)
		}
	}
	c, err := trust.New(cert, roots, now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.Bundle = trust.BundleOf(bundle)
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(c.Certificate.Leaf.PublicKey) {
		return nil, fmt.Errorf("%s: the key is not the certificate's", path)
	}
	return c, nil
}

// keep writes the credentials for the next run. A disk that is full must not cost us the identity that we have, so a
// failure is only told.
func (a *Agent) keep(c *trust.Credentials, key *ecdsa.PrivateKey, roots [][]byte) {
	if a.o.StateDir == "" {
		return
	}
	if err := writeState(a.o.StateDir, c, key, roots); err != nil {
		a.o.Log.Warn("the identity could not be kept on disk: a restart without a control plane will have none", "error", err)
	}
}

func writeState(dir string, c *trust.Credentials, key *ecdsa.PrivateKey, roots [][]byte) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der})
	for _, b := range c.Certificate.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: b})...)
	}
	for _, b := range roots {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockRoot, Bytes: b})...)
	}
	f, err := os.CreateTemp(dir, ".identity-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(out)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, stateFile))
}
