package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// user is who may talk to the API server with a token.
type user struct{ name, groups string }

func (c *Cluster) users() []user {
	all := []user{{"admin", "system:masters"}, {"system:kube-controller-manager", ""}, {"system:kube-scheduler", ""}, {"system:kube-proxy", "system:node-proxier"}}
	for i := range maxNodes {
		all = append(all, user{"system:node:" + c.node(i+1).name, "system:nodes"})
	}
	return all
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

func (c *Cluster) kubeconfig(u string) string {
	if u == "admin" {
		return c.Kubeconfig
	}
	return c.path("kubeconfig", strings.ReplaceAll(u, ":", "-"))
}

// keys makes an authority, the certificates and tokens of the control plane, and a kubeconfig for each user, once.
func (c *Cluster) keys(context.Context) error {
	if _, err := os.Stat(c.Kubeconfig); err == nil {
		return nil
	}
	for _, d := range []string{"pki", "kubeconfig", "log"} {
		if err := os.MkdirAll(c.path(d), 0o700); err != nil {
			return err
		}
	}
	ca, caKey, err := c.issue("ca", &x509.Certificate{Subject: pkix.Name{CommonName: "cluster " + c.options.Name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	if err != nil {
		return err
	}
	first := net.ParseIP(c.serviceAddress(1))
	if _, _, err = c.issue("apiserver", &x509.Certificate{
		Subject: pkix.Name{CommonName: "kube-apiserver"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), first, net.ParseIP(c.node(1).address)},
	}, ca, caKey); err != nil {
		return err
	}
	for name, subject := range map[string]pkix.Name{
		"kubelet-client": {CommonName: "kube-apiserver", Organization: []string{"system:masters"}},
		"front-proxy":    {CommonName: "front-proxy"},
		"sa":             {CommonName: "service-accounts"},
	} {
		if _, _, err = c.issue(name, &x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, caKey); err != nil {
			return err
		}
	}
	var tokens strings.Builder
	for _, u := range c.users() {
		var b [16]byte
		if _, err := rand.Read(b[:]); err != nil {
			return err
		}
		token := hex.EncodeToString(b[:])
		_, _ = fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", token, u.name, u.name, u.groups)
		if u.name == "admin" {
			continue // last: it says that all is there
		}
		if err := c.writeKubeconfig(u.name, token); err != nil {
			return err
		}
	}
	if err := os.WriteFile(c.path("pki", "tokens.csv"), []byte(tokens.String()), 0o600); err != nil {
		return err
	}
	admin, _, _ := strings.Cut(tokens.String(), ",")
	return c.writeKubeconfig("admin", admin)
}

func (c *Cluster) writeKubeconfig(user, token string) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster: {server: "https://%[2]s:6443", certificate-authority: %[3]s}
users:
- name: %[4]q
  user: {token: %[5]s}
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[4]q}
current-context: %[1]s
`, c.options.Name, c.node(1).address, c.path("pki", "ca.crt"), user, token)
	return os.WriteFile(c.kubeconfig(user), []byte(text), 0o600)
}

// issue writes pki/NAME.crt and .key.
func (c *Cluster) issue(name string, t, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, nil, err
	}
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	t.KeyUsage |= x509.KeyUsageDigitalSignature
	if parent == nil {
		parent, parentKey = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(c.path("pki", name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(c.path("pki", name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}
