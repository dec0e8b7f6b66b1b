package gatewayapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/malha-mesh/malha/test/cluster"
)

// Images makes the images that the suite's manifests name, from the sources of the programs in them. dir keeps these.
func Images(ctx context.Context, c *cluster.Cluster, dir string) ([]cluster.Image, error) {
	const echo = "istio.io/istio/pkg/test/echo/cmd/"
	for _, b := range []struct{ in, pkg string }{{".", "sigs.k8s.io/gateway-api/conformance/echo-basic"}, {"echo", echo + "server"}, {"echo", echo + "client"}} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", b.pkg)
		cmd.Dir, cmd.Env = b.in, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building %s: %w\n%s", b.pkg, err, out)
		}
	}
	if err := certificate(dir); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	var images []cluster.Image
	for _, tag := range []string{"v1.5.1", "v1.6.0-dev.2", "v1.6.0-dev.3"} {
		images = append(images, cluster.Image{
			Name: "registry.k8s.io/gateway-api/echo-basic:" + tag, Files: map[string]string{"/echo-basic": file("echo-basic")}, Entrypoint: []string{"/echo-basic"}, User: "65532:65532",
		})
	}
	return append(images, cluster.Image{
		// The suite runs "client" in it.
		Name: "registry.k8s.io/gateway-api/echo-advanced:v1.5.1", User: "65532:65532",
		Files:      map[string]string{"/bin/server": file("server"), "/bin/client": file("client"), "/cert.crt": file("cert.crt"), "/cert.key": file("cert.key")},
		Entrypoint: []string{"/bin/server"}, Env: []string{"PATH=/bin"},
	}, cluster.Image{
		// A backend for UDP, which the mesh does not claim to carry: it only has to be there.
		Name: "registry.k8s.io/coredns/coredns:v1.12.2", Files: map[string]string{"/pause": filepath.Join(c.Dir(), "bin", "pause")}, Entrypoint: []string{"/pause"},
	}), nil
}

// certificate writes the certificate by which echo-advanced serves TLS; nobody verifies it.
func certificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "echo"}, DNSNames: []string{"echo"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	write := func(name, kind string, der []byte) error {
		return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644)
	}
	return errors.Join(write("cert.crt", "CERTIFICATE", cert), write("cert.key", "PRIVATE KEY", private))
}
