package istio

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// clientTLS reads the TLS block of a DestinationRule.
func (r *reader) clientTLS(at manifest.Cursor, in *networking.ClientTLSSettings, out *model.TrafficPolicy) {
	mode := plan.TLSOff // DISABLE is also what a tls block without a mode means
	files := in.GetClientCertificate() != "" || in.GetPrivateKey() != "" || in.GetCaCertificates() != ""
	switch in.GetMode() {
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		mode = plan.TLSMutual
		if files || in.GetCredentialName() != "" {
			r.Error(manifest.CodeTLS, at, "remove them, or use mode: MUTUAL", "with ISTIO_MUTUAL the mesh's own certificates are used; others cannot be named")
		}
		if len(in.GetSubjectAltNames()) > 0 {
			r.Error(manifest.CodeUnsupported, at.Field("subjectAltNames"), "remove it: each endpoint must prove its own identity", "`subjectAltNames` is not supported by Malha with mode ISTIO_MUTUAL")
		}
		if in.GetInsecureSkipVerify().GetValue() {
			r.Error(manifest.CodeTLS, at.Field("insecureSkipVerify"), "remove it", "peers in the mesh are always verified")
		}
		out.SNI = r.serverName(at.Field("sni"), in.GetSni())
	case networking.ClientTLSSettings_SIMPLE, networking.ClientTLSSettings_MUTUAL:
		out.Originate = r.originate(at, in)
	default:
		if files || in.GetCredentialName() != "" || in.GetSni() != "" || len(in.GetSubjectAltNames()) > 0 || in.GetInsecureSkipVerify().GetValue() {
			r.Warning(manifest.CodeIgnoredField, at, "write mode: SIMPLE or MUTUAL", "TLS is off: nothing else of `tls` has an effect")
		}
	}
	if !at.Field("mode").Set() {
		r.Warning(manifest.CodeRequired, at, "write mode: DISABLE, or remove tls", "a tls block without a mode switches mesh TLS off")
	}
	out.TLS = &mode
}

// originate reads TLS to servers that are not of the mesh.
func (r *reader) originate(at manifest.Cursor, in *networking.ClientTLSSettings) *plan.ClientTLS {
	mutual := in.GetMode() == networking.ClientTLSSettings_MUTUAL
	out := &plan.ClientTLS{
		SNI: r.serverName(at.Field("sni"), in.GetSni()), Insecure: in.GetInsecureSkipVerify().GetValue(),
		SubjectAltNames: r.altNames(at.Field("subjectAltNames"), in.GetSubjectAltNames()),
	}
	cert, key, ca := in.GetClientCertificate(), in.GetPrivateKey(), in.GetCaCertificates()
	if name := in.GetCredentialName(); name != "" {
		if cert != "" || key != "" || ca != "" {
			r.Error(manifest.CodeExclusive, at.Field("credentialName"), "keep one of them", "`credentialName` excludes clientCertificate, privateKey and caCertificates")
		}
		out.Authorities = r.secret(at.Field("credentialName"), name)
		if mutual {
			out.Secret = out.Authorities
		}
	} else {
		switch {
		case mutual && cert == "":
			r.Error(manifest.CodeRequired, at, "add clientCertificate and privateKey, or credentialName", "mode MUTUAL needs a certificate of ours")
		case (cert == "") != (key == ""):
			r.Error(manifest.CodeRequired, at, "give both", "clientCertificate and privateKey belong together")
		case !mutual && cert != "":
			r.Warning(manifest.CodeIgnoredField, at.Field("clientCertificate"), "write mode: MUTUAL", "with mode SIMPLE no certificate of ours is sent")
		case cert != "":
			out.Secret = r.files(at, cert, key)
		}
		if ca != "" {
			out.Authorities = r.files(at.Field("caCertificates"), ca)
		}
	}
	if out.Insecure {
		if ca != "" {
			r.Error(manifest.CodeExclusive, at.Field("insecureSkipVerify"), "remove one of them", "`insecureSkipVerify` excludes `caCertificates`: nothing is verified")
		}
		if len(out.SubjectAltNames) > 0 {
			r.Error(manifest.CodeExclusive, at.Field("insecureSkipVerify"), "remove one of them", "`insecureSkipVerify` excludes `subjectAltNames`: nothing is verified")
		}
		r.Warning(manifest.CodeTLS, at.Field("insecureSkipVerify"), "name the authority of the server in caCertificates", "anybody can answer in the server's place: it is not verified")
	}
	return out
}

// serverName reads the name that a client asks a TLS server for.
func (r *reader) serverName(at manifest.Cursor, s string) string {
	if s == "" {
		return ""
	}
	h, err := ident.CanonicalHost(s, false)
	if err != nil || strings.Contains(h, ":") {
		r.Error(manifest.CodeBadHost, at, "a server name has letters, digits, '-' and '.', and no port", "%q is not a server name", s)
	}
	return h
}

// altNames checks names that a certificate must have: hosts, or URIs such as a SPIFFE identity.
func (r *reader) altNames(at manifest.Cursor, in []string) []string {
	for i, s := range in {
		if s == "" || match.HasCTL([]byte(s)) || strings.Contains(s, " ") {
			r.Error(manifest.CodeBadValue, at.Index(i), "write a host, or spiffe://…", "%q is no name of a certificate", s)
		}
	}
	return in
}

// secret reads the name of a Secret: NAME of the proxy's own namespace, kubernetes://NAME, or one of both with NAMESPACE/.
func (r *reader) secret(at manifest.Cursor, s string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(s, "kubernetes-gateway://"), "kubernetes://")
	ns, rest, qualified := strings.Cut(name, "/")
	if !qualified {
		rest = ns
	}
	if !manifest.IsSubdomain(rest) || qualified && !manifest.IsDNSLabel(ns) {
		r.Error(manifest.CodeBadValue, at, "write the name of a Secret", "%q cannot be the name of a Secret", s)
		return ""
	}
	return name
}

// files names the Secret that files hold.
func (r *reader) files(at manifest.Cursor, paths ...string) string {
	for _, p := range paths {
		if strings.Contains(p, ",") || match.HasCTL([]byte(p)) { // FileSecret puts commas between them
			r.Error(manifest.CodeBadValue, at, "rename the file", "%q cannot be the path of a certificate: it has a comma or a control character", p)
		}
	}
	return manifest.FileSecret(r.object, paths...)
}

// serverModes are those that end TLS.
var serverModes = map[networking.ServerTLSSettings_TLSmode]plan.ServerTLSMode{
	networking.ServerTLSSettings_SIMPLE: plan.ServeSimple, networking.ServerTLSSettings_MUTUAL: plan.ServeMutual,
	networking.ServerTLSSettings_OPTIONAL_MUTUAL: plan.ServeOptionalMutual, networking.ServerTLSSettings_ISTIO_MUTUAL: plan.ServeMesh,
}

// maxCertificates is how many certificates a server may have (RSA and ECDSA).
const maxCertificates = 2

// serverTLS reads the TLS block of a server; nil when TLS is passed on, or an error was reported.
func (r *reader) serverTLS(at manifest.Cursor, in *networking.ServerTLSSettings) *plan.ServerTLS {
	mode, ends := serverModes[in.GetMode()]
	asks := mode == plan.ServeMutual || mode == plan.ServeOptionalMutual // for certificates of clients
	r.oneCredential(at, in)
	switch own := r.ownCertificates(in); {
	case !ends && own:
		r.Error(manifest.CodeTLS, at, "write mode: SIMPLE, or remove the certificate", "TLS is passed on with mode %s: a certificate has no place there", in.GetMode())
	case mode == plan.ServeMesh && own:
		r.Error(manifest.CodeTLS, at, "remove it, or use mode: MUTUAL", "with ISTIO_MUTUAL the gateway's own identity is used: no certificate can be named")
	case ends && mode != plan.ServeMesh && !own:
		r.Error(manifest.CodeRequired, at, "add credentialName: NAME-OF-A-SECRET", "mode %s needs a certificate", in.GetMode())
	}
	if !ends {
		return nil
	}
	out := &plan.ServerTLS{Mode: mode}
	if mode != plan.ServeMesh {
		r.certificates(at, in, out)
	}
	if asks {
		r.clientAuthorities(at, in, out)
	} else if in.GetCaCertificates() != "" || in.GetCaCertCredentialName() != "" {
		r.Warning(manifest.CodeIgnoredField, at, "write mode: MUTUAL", "clients are not asked for a certificate with mode %s: authorities have no effect", in.GetMode())
	}
	out.SubjectAltNames = r.altNames(at.Field("subjectAltNames"), in.GetSubjectAltNames())
	out.KeyHashes = r.hashes(at.Field("verifyCertificateSpki"), in.GetVerifyCertificateSpki(), spki)
	out.CertificateHashes = r.hashes(at.Field("verifyCertificateHash"), in.GetVerifyCertificateHash(), fingerprint)
	if len(out.SubjectAltNames)+len(out.KeyHashes)+len(out.CertificateHashes) > 0 && !asks && mode != plan.ServeMesh {
		r.Error(manifest.CodeTLS, at, "write mode: MUTUAL", "mode %s does not ask clients for a certificate, whose name or hash could be checked", in.GetMode())
	}
	out.MinVersion = tlsVersions[in.GetMinProtocolVersion()]
	out.MaxVersion = tlsVersions[in.GetMaxProtocolVersion()]
	if out.MinVersion > out.MaxVersion && out.MaxVersion > 0 {
		r.Error(manifest.CodeTLS, at.Field("minProtocolVersion"), "swap them", "the smallest version %s is above the largest, %s", in.GetMinProtocolVersion(), in.GetMaxProtocolVersion())
	}
	if out.MinVersion == 0x0301 || out.MinVersion == 0x0302 {
		r.Warning(manifest.CodeTLS, at.Field("minProtocolVersion"), "write TLSV1_2", "%s is out of use since RFC 8996", in.GetMinProtocolVersion())
	}
	if in.GetInsecureSkipVerify().GetValue() {
		r.Error(manifest.CodeUnsupported, at.Field("insecureSkipVerify"), "use OPTIONAL_MUTUAL, or SIMPLE", "clients whose certificate is not valid are not let in by Malha")
	}
	out.Ciphers = r.ciphers(at.Field("cipherSuites"), in.GetCipherSuites())
	return out
}

// ownCertificates reports whether the block names a certificate of the server.
func (r *reader) ownCertificates(in *networking.ServerTLSSettings) bool {
	return in.GetCredentialName() != "" || len(in.GetCredentialNames())+len(in.GetTlsCertificates()) > 0 ||
		in.GetServerCertificate() != "" || in.GetPrivateKey() != ""
}

// oneCredential checks that the server's certificate is named in one way.
func (r *reader) oneCredential(at manifest.Cursor, in *networking.ServerTLSSettings) {
	var ways []string
	for _, w := range []struct {
		field string
		set   bool
	}{
		{"credentialName", in.GetCredentialName() != ""}, {"credentialNames", len(in.GetCredentialNames()) > 0},
		{"tlsCertificates", len(in.GetTlsCertificates()) > 0},
		{"serverCertificate", in.GetServerCertificate() != "" || in.GetPrivateKey() != ""},
	} {
		if w.set {
			ways = append(ways, w.field)
		}
	}
	if len(ways) > 1 {
		r.Error(manifest.CodeExclusive, at.Field(ways[1]), "keep one of them", "`%s` exclude each other", strings.Join(ways, "` and `"))
	}
	for field, n := range map[string]int{"credentialNames": len(in.GetCredentialNames()), "tlsCertificates": len(in.GetTlsCertificates())} {
		if here := at.Field(field); n > maxCertificates || here.Set() && n == 0 {
			r.Error(manifest.CodeOutOfRange, here, "", "%d certificates: from 1 to %d may be named", n, maxCertificates)
		}
	}
}

func (r *reader) certificates(at manifest.Cursor, in *networking.ServerTLSSettings, out *plan.ServerTLS) {
	add := func(name string) {
		if name != "" {
			out.Secrets = append(out.Secrets, name)
		}
	}
	pair := func(here manifest.Cursor, cert, key string) {
		if cert == "" || key == "" {
			r.Error(manifest.CodeRequired, here, "give both", "serverCertificate and privateKey belong together")
			return
		}
		add(r.files(here, cert, key))
	}
	if name := in.GetCredentialName(); name != "" {
		add(r.secret(at.Field("credentialName"), name))
	}
	for i, name := range in.GetCredentialNames() {
		add(r.secret(at.Field("credentialNames").Index(i), name))
	}
	for i, c := range in.GetTlsCertificates() {
		pair(at.Field("tlsCertificates").Index(i), c.GetServerCertificate(), c.GetPrivateKey())
	}
	if in.GetServerCertificate() != "" || in.GetPrivateKey() != "" {
		pair(at, in.GetServerCertificate(), in.GetPrivateKey())
	}
}

// clientAuthorities reads who vouches for clients: a Secret or a file that is named, or else the Secret of the certificate.
func (r *reader) clientAuthorities(at manifest.Cursor, in *networking.ServerTLSSettings, out *plan.ServerTLS) {
	files := []string{in.GetCaCertificates()}
	for _, c := range in.GetTlsCertificates() {
		files = append(files, c.GetCaCertificates())
	}
	files = slices.Compact(slices.DeleteFunc(files, func(s string) bool { return s == "" }))
	switch name := in.GetCaCertCredentialName(); {
	case name != "" && len(files) > 0:
		r.Error(manifest.CodeExclusive, at.Field("caCertCredentialName"), "keep one of them", "`caCertCredentialName` and `caCertificates` exclude each other")
	case name != "":
		out.Authorities = r.secret(at.Field("caCertCredentialName"), name)
	case len(files) > 1:
		r.Error(manifest.CodeTLS, at.Field("tlsCertificates"), "put all authorities into one file", "clients of one server are vouched for by one file, not %d", len(files))
	case len(files) == 1:
		out.Authorities = r.files(at, files[0])
	case in.GetCredentialName() != "" || len(in.GetCredentialNames()) > 0:
		if len(out.Secrets) > 0 { // its ca.crt, or that of the Secret of its name with "-cacert" behind
			out.Authorities = out.Secrets[0]
		}
	default:
		r.Error(manifest.CodeRequired, at, "add caCertificates: FILE", "mode %s needs the authorities that vouch for clients", in.GetMode())
	}
}

// tlsVersions are the numbers of RFC 8446 section 4.2.1. TLS_AUTO is the default: 1.2 to 1.3.
var tlsVersions = map[networking.ServerTLSSettings_TLSProtocol]uint16{
	networking.ServerTLSSettings_TLSV1_0: 0x0301, networking.ServerTLSSettings_TLSV1_1: 0x0302,
	networking.ServerTLSSettings_TLSV1_2: 0x0303, networking.ServerTLSSettings_TLSV1_3: 0x0304,
}

// cipherSuites are those of TLS 1.2 and before that Malha has, by OpenSSL's name, with their IANA numbers.
var cipherSuites = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": 0xc02b, "ECDHE-RSA-AES128-GCM-SHA256": 0xc02f,
	"ECDHE-ECDSA-AES256-GCM-SHA384": 0xc02c, "ECDHE-RSA-AES256-GCM-SHA384": 0xc030,
	"ECDHE-ECDSA-CHACHA20-POLY1305": 0xcca9, "ECDHE-RSA-CHACHA20-POLY1305": 0xcca8,
	"ECDHE-ECDSA-AES128-SHA": 0xc009, "ECDHE-RSA-AES128-SHA": 0xc013, "ECDHE-ECDSA-AES256-SHA": 0xc00a, "ECDHE-RSA-AES256-SHA": 0xc014,
	"AES128-GCM-SHA256": 0x009c, "AES256-GCM-SHA384": 0x009d, "AES128-SHA": 0x002f, "AES256-SHA": 0x0035, "DES-CBC3-SHA": 0x000a,
}

// otherSuites are names that exist in Istio and that Malha has no code for.
var otherSuites = []string{"ECDHE-ECDSA-AES128-SHA256", "ECDHE-RSA-AES128-SHA256", "AES128-SHA256", "ECDHE-PSK-AES128-CBC-SHA", "ECDHE-PSK-AES256-CBC-SHA", "PSK-AES128-CBC-SHA", "PSK-AES256-CBC-SHA"}

// ciphers reads suites by OpenSSL's names. Those of TLS 1.3 cannot be chosen.
func (r *reader) ciphers(at manifest.Cursor, in []string) []uint16 {
	var out []uint16
	for i, name := range in {
		here := at.Index(i)
		n, known := cipherSuites[name]
		switch {
		case known && slices.Contains(out, n):
			r.Warning(manifest.CodeIgnoredField, here, "keep one of them", "cipher suite %s stands twice", name)
		case known:
			out = append(out, n)
		case strings.HasPrefix(name, "TLS_AES_") || strings.HasPrefix(name, "TLS_CHACHA20_"):
			r.Warning(manifest.CodeIgnoredField, here, "remove it", "the suites of TLS 1.3 are always offered: %s adds nothing", name)
		case slices.Contains(otherSuites, name):
			r.Warning(manifest.CodeIgnoredField, here, "remove it", "Malha does not have the cipher suite %s: it is not offered", name)
		default:
			var names []string
			for known := range cipherSuites {
				names = append(names, known)
			}
			slices.Sort(names)
			r.Error(manifest.CodeBadValue, here, manifest.DidYouMean(name, names), "unknown cipher suite %q", name)
		}
	}
	if len(in) > 0 && len(out) == 0 {
		r.Error(manifest.CodeTLS, at, "name one of ECDHE-RSA-AES128-GCM-SHA256, ECDHE-ECDSA-AES128-GCM-SHA256, …", "no cipher suite is left")
	}
	return out
}

// hashes reads SHA-256 hashes.
func (r *reader) hashes(at manifest.Cursor, in []string, read func(string) ([]byte, error)) [][]byte {
	var out [][]byte
	for i, s := range in {
		b, err := read(s)
		if err != nil || len(b) != 32 {
			r.Error(manifest.CodeBadValue, at.Index(i), "openssl computes it; see the API's documentation", "%q is not a SHA-256 hash", s)
			continue
		}
		out = append(out, b)
	}
	return out
}

// spki reads the hash of a public key, in base64.
func spki(s string) ([]byte, error) { return base64.StdEncoding.DecodeString(s) }

// fingerprint reads the hash of a certificate: hexadecimal, colons between bytes or not.
func fingerprint(s string) ([]byte, error) { return hex.DecodeString(strings.ReplaceAll(s, ":", "")) }
