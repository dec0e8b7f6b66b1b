package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Names of the files in Options.Dir.
const (
	RootFile = "root.pem"
	keyFile  = "root-key.pem"
)

func openRoot(o Options) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if o.Dir == "" {
		return newRoot(o)
	}
	root, key, err := loadRoot(o)
	if !errors.Is(err, fs.ErrNotExist) {
		return root, key, err
	}
	if root, key, err = newRoot(o); err != nil {
		return nil, nil, err
	}
	if err := saveRoot(o.Dir, root, key); err != nil {
		return nil, nil, fmt.Errorf("ca: keeping the new root in %s: %w", o.Dir, err)
	}
	return root, key, nil
}

func newRoot(o Options) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("ca: making the root key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := o.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{o.TrustDomain}, CommonName: "Malha root " + serial.Text(16)[:8]},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, fmt.Errorf("ca: making the root certificate: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	return root, key, err
}

// loadRoot returns an error that is fs.ErrNotExist only when neither file is there: half a root is never replaced.
func loadRoot(o Options) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPath, keyPath := filepath.Join(o.Dir, RootFile), filepath.Join(o.Dir, keyFile)
	certPEM, certErr := os.ReadFile(certPath)
	keyPEM, keyErr := os.ReadFile(keyPath)
	switch {
	case errors.Is(keyErr, fs.ErrNotExist):
		// The key is written last: without one the root never signed anything, and a certificate alone is of no use.
		if certErr == nil {
			return nil, nil, fmt.Errorf("ca: %s has no key beside it: restore %s, or remove %s to have a new root made", certPath, keyPath, certPath)
		}
		return nil, nil, certErr
	case keyErr != nil:
		return nil, nil, fmt.Errorf("ca: reading the root key: %w", keyErr)
	case errors.Is(certErr, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("ca: %s has no certificate beside it: restore %s, or remove the key to have a new root made", keyPath, certPath)
	case certErr != nil:
		return nil, nil, fmt.Errorf("ca: reading the root: %w", certErr)
	}
	if err := checkMode(keyPath); err != nil {
		return nil, nil, err
	}
	root, key, err := parseRoot(certPEM, keyPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("ca: the root in %s cannot be used: %w", o.Dir, err)
	}
	now := o.Now()
	switch {
	case now.After(root.NotAfter):
		return nil, nil, fmt.Errorf("ca: the root in %s expired at %s: remove %s and %s to have a new one made", o.Dir, root.NotAfter, RootFile, keyFile)
	case len(root.Subject.Organization) > 0 && root.Subject.Organization[0] != o.TrustDomain:
		return nil, nil, fmt.Errorf("ca: the root in %s is of trust domain %q, not %q: use another directory", o.Dir, root.Subject.Organization[0], o.TrustDomain)
	}
	return root, key, nil
}

func checkMode(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if m := info.Mode().Perm(); m&0o077 != 0 {
		return fmt.Errorf("ca: the root key %s can be read by others (mode %04o): chmod 600 it, and replace the root if somebody may have", path, m)
	}
	return nil
}

func parseRoot(certPEM, keyPEM []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	cb, rest := pem.Decode(certPEM)
	if cb == nil || cb.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, nil, errors.New("want one PEM CERTIFICATE")
	}
	root, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, nil, err
	}
	kb, _ := pem.Decode(keyPEM)
	if kb == nil || kb.Type != "PRIVATE KEY" {
		return nil, nil, errors.New("want a PEM PRIVATE KEY (PKCS #8)")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
	if err != nil {
		return nil, nil, errors.New("the key is not PKCS #8") // err might quote the key
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, nil, errors.New("want an ECDSA P-256 key")
	}
	if !key.PublicKey.Equal(root.PublicKey) {
		return nil, nil, errors.New("the key is not the certificate's")
	}
	if !root.IsCA || root.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, nil, errors.New("the certificate is not a CA's")
	}
	return root, key, nil
}

// saveRoot writes the certificate first: a crash in between leaves no key that was ever used.
func saveRoot(dir string, root *x509.Certificate, key *ecdsa.PrivateKey) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	if err := writeFile(filepath.Join(dir, RootFile), certPEM, 0o644); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, keyFile), keyPEM, 0o600)
}

// writeFile replaces path by data in one step, and only once data is on the disk.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
