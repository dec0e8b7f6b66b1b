// Command certificate prints the Secret of the shop's HTTPS gateway: a key made now, and a certificate for shop.example.com that is
// signed by itself, for a year.
//
//	go run ./samples/shop/certificate > samples/shop/mesh/certificate.yaml
//
// It is for trying things out on one machine. The file is not meant for a repository: whoever has the key is the shop.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"
)

const host = "shop.example.com"

func main() {
	text, err := secret(time.Now())
	if err == nil {
		_, err = os.Stdout.WriteString(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "certificate:", err)
		os.Exit(1)
	}
}

func secret(now time.Time) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("making a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), // clocks differ
		BasicConstraintsValid: true, IsCA: true,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", fmt.Errorf("signing the certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("encoding the key: %w", err)
	}
	return "apiVersion: v1\nkind: Secret\nmetadata: {name: shop}\ntype: kubernetes.io/tls\nstringData:\n" +
		entry("tls.crt", "CERTIFICATE", certificate) + entry("tls.key", "PRIVATE KEY", private), nil
}

// entry is a PEM block as a value of the Secret.
func entry(name, kind string, der []byte) string {
	block := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	return "  " + name + ": |\n    " + strings.ReplaceAll(block, "\n", "\n    ") + "\n"
}
