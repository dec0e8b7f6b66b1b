package core

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"reflect"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// secretObject is a v1 Secret. Its values have types of their own, so that no diagnostic shows one.
type secretObject struct {
	Type       string                `json:"type"`
	Data       map[string]secretData `json:"data"`
	StringData map[string]secretText `json:"stringData"` // wins over Data, as in the API server
	Immutable  bool                  `json:"immutable"`
}

type (
	secretData []byte
	secretText string
)

var secretType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[secretObject](), map[reflect.Type]*manifest.Type{
		reflect.TypeFor[secretData](): manifest.TypeSecretBytes,
		reflect.TypeFor[secretText](): manifest.TypeSecretText,
	})
})

var secretFields = manifest.Join(
	manifest.Work("", "type", "data", "stringData"),
	manifest.Ignore("a changed Secret is put in force", "immutable"),
)

const authoritiesSuffix = "-cacert"

// secret reads a certificate by the keys of a kubernetes.io/tls Secret, or by those of Istio's generic ones (istio.io
// "Secure Gateways": cert, key, cacert, crl).
func secret(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	var in secretObject
	if !decode(o, spec, &in, r) {
		return
	}
	at := o.Root()
	value := func(keys ...string) (v []byte, where manifest.Cursor) {
		for _, k := range keys {
			if s, ok := in.StringData[k]; ok {
				return []byte(s), at.Field("stringData").Key(k)
			}
			if b, ok := in.Data[k]; ok {
				return b, at.Field("data").Key(k)
			}
		}
		return nil, at
	}
	s := plan.Secret{Name: o.Name.String(), Origin: o.Origin}
	var certAt, keyAt, authAt, crlAt manifest.Cursor
	s.Certificate, certAt = value("tls.crt", "cert")
	s.Key, keyAt = value("tls.key", "key")
	s.Authorities, authAt = value("ca.crt", "cacert")
	s.Revoked, crlAt = value("ca.crl", "crl")
	_, before := r.Len()
	switch {
	case in.Type == "kubernetes.io/tls" && (s.Certificate == nil || s.Key == nil):
		r.Error(manifest.CodeSecret, at, "add both to data", "a Secret of type kubernetes.io/tls has tls.crt and tls.key")
	case s.Certificate == nil && s.Authorities == nil && (s.Key != nil && in.Type == "" || s.Revoked != nil):
		r.Error(manifest.CodeSecret, at, "add tls.crt, or ca.crt", "the Secret has a key or a revocation list, and no certificate")
	case s.Certificate == nil && s.Authorities == nil:
		r.Info(manifest.CodeIgnoredKind, at, "", "the Secret holds no certificate (tls.crt, cert, ca.crt, cacert): nothing in the mesh reads it")
		return
	case s.Certificate != nil && s.Key == nil && s.Authorities == nil:
		r.Error(manifest.CodeSecret, certAt, "add tls.key (or key)", "the Secret has a certificate and no private key")
	case s.Certificate == nil && s.Key != nil:
		r.Error(manifest.CodeSecret, keyAt, "add tls.crt (or cert)", "the Secret has a private key and no certificate")
	}
	if _, after := r.Len(); after > before {
		return
	}
	if s.Certificate != nil && s.Key != nil {
		if _, err := tls.X509KeyPair(s.Certificate, s.Key); err != nil {
			r.Error(manifest.CodeSecret, certAt, "put the PEM of the certificate chain, leaf first, and of its private key", "the certificate and the key cannot be used: %s", pairProblem(s.Certificate, s.Key))
		}
	}
	if s.Authorities != nil {
		if why := notCertificates(s.Authorities); why != "" {
			r.Error(manifest.CodeSecret, authAt, "put the PEM of one or more certificates", "the authorities cannot be used: %s", why)
		}
	}
	if s.Revoked != nil {
		if why := notRevocations(s.Revoked); why != "" {
			r.Error(manifest.CodeSecret, crlAt, "put the PEM of an X509 CRL", "the revocation list cannot be used: %s", why)
		}
	}
	out.Secrets = append(out.Secrets, model.Secret{Meta: o.Meta(), Secret: s})
}

// SecretProblem says why a Secret cannot be used, without a word of what it holds; "" when it can.
func SecretProblem(s *plan.Secret) string {
	if len(s.Certificate) > 0 || len(s.Key) > 0 {
		if _, err := tls.X509KeyPair(s.Certificate, s.Key); err != nil {
			return pairProblem(s.Certificate, s.Key)
		}
	}
	if len(s.Authorities) > 0 || len(s.Certificate) == 0 {
		return notCertificates(s.Authorities)
	}
	return ""
}

// pairProblem says what is wrong with a pair in words of our own: an error of the library might quote what it read.
func pairProblem(cert, key []byte) string {
	if why := notCertificates(cert); why != "" {
		return "tls.crt: " + why
	}
	for rest := key; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil:
			return "tls.key: no PEM block with a private key"
		case !strings.HasSuffix(block.Type, "PRIVATE KEY"):
			continue
		case strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "":
			return "tls.key: the private key is encrypted; put it without a passphrase"
		}
		return "the private key cannot be read, or is not that of the certificate"
	}
}

// notCertificates says why PEM holds no usable certificates; "" when it does.
func notCertificates(text []byte) string {
	n := 0
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "a certificate in it cannot be read"
		}
		n++
	}
	if n == 0 {
		return "no PEM block CERTIFICATE"
	}
	return ""
}

func notRevocations(text []byte) string {
	n := 0
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if _, err := x509.ParseRevocationList(block.Bytes); err != nil {
			return "a list in it cannot be read"
		}
		n++
	}
	if n == 0 {
		return "no PEM block X509 CRL"
	}
	return ""
}

// authorities completes pairs by the Secret of the same name with "-cacert" behind it, as Istio does for mutual TLS.
func authorities(out *model.Config) {
	byName := make(map[ident.Name]*model.Secret, len(out.Secrets))
	for i := range out.Secrets {
		byName[out.Secrets[i].Meta.Name] = &out.Secrets[i]
	}
	for i := range out.Secrets {
		from := &out.Secrets[i]
		base, ok := strings.CutSuffix(from.Meta.Name.Name, authoritiesSuffix)
		to := byName[ident.Name{Namespace: from.Meta.Name.Namespace, Name: base}]
		if ok && to != nil && len(to.Authorities) == 0 && len(to.Key) > 0 {
			to.Authorities, to.Revoked = bytes.Clone(from.Authorities), bytes.Clone(from.Revoked)
		}
	}
}
