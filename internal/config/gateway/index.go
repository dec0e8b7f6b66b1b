package gateway

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// index finds what objects refer to. Everything in it is of the configuration that is being made.
type index struct {
	*manifest.Report
	out        *model.Config
	services   map[ident.Name]*model.Service
	namespaces map[string]labels.Set
	secrets    map[ident.Name]*model.Secret
	maps       map[ident.Name]*mapEntry
	limits     map[ident.Name]string // name in the plan of those for routes
	grants     []object[v1.ReferenceGrantSpec]
}

// mapEntry is a ConfigMap.
type mapEntry struct {
	*manifest.Object
	authorities string // ca.crt; "" none
	used        bool
}

func (d *dialect) index(out *model.Config, r *manifest.Report) *index {
	x := &index{
		Report: r, out: out, services: map[ident.Name]*model.Service{}, namespaces: map[string]labels.Set{},
		secrets: map[ident.Name]*model.Secret{}, maps: map[ident.Name]*mapEntry{}, limits: map[ident.Name]string{}, grants: d.grants,
	}
	for i := range out.Services {
		if s := &out.Services[i]; s.Origin.Kind == "Service" {
			x.services[s.Name] = s
		}
	}
	for i := range out.Namespaces {
		x.namespaces[out.Namespaces[i].Name.Name] = out.Namespaces[i].Labels
	}
	for i := range out.Secrets {
		if s := &out.Secrets[i]; s.Meta.Origin.Kind == "Secret" {
			x.secrets[s.Meta.Name] = s
		}
	}
	for i := range out.RateLimits {
		if l := &out.RateLimits[i]; l.Meta.Origin.Kind == "RateLimit" && l.ByRoute {
			x.limits[l.Name] = l.Limit.Name
		}
	}
	for _, m := range d.maps {
		e := &mapEntry{Object: m.Object, authorities: m.spec.Data["ca.crt"]}
		if e.authorities == "" {
			e.authorities = string(m.spec.BinaryData["ca.crt"])
		}
		x.maps[m.Name] = e
	}
	return x
}

// labelsOf returns the labels of a namespace, also of one that is only named: an API server gives each its name.
func (x *index) labelsOf(namespace string) labels.Set {
	out := labels.Set{"kubernetes.io/metadata.name": namespace}
	for k, v := range x.namespaces[namespace] {
		out[k] = v
	}
	return out
}

// selects reports whether a label selector takes a namespace. One that can't be read takes none.
func (x *index) selects(s *metav1.LabelSelector, namespace string) bool {
	if s == nil {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(x.labelsOf(namespace))
}

// reference is an object and what it refers to.
type reference struct {
	fromGroup, fromKind, fromNamespace string
	toGroup, toKind                    string
	to                                 ident.Name
}

// permitted reports whether a reference may cross namespaces (ReferenceGrant: without one that says so it may not).
func (x *index) permitted(ref reference) bool {
	if ref.fromNamespace == ref.to.Namespace {
		return true
	}
	return slices.ContainsFunc(x.grants, func(g object[v1.ReferenceGrantSpec]) bool {
		return !g.refused && g.Name.Namespace == ref.to.Namespace &&
			slices.ContainsFunc(g.spec.From, func(f v1.ReferenceGrantFrom) bool {
				return string(f.Group) == ref.fromGroup && string(f.Kind) == ref.fromKind && string(f.Namespace) == ref.fromNamespace
			}) &&
			slices.ContainsFunc(g.spec.To, func(t v1.ReferenceGrantTo) bool {
				return string(t.Group) == ref.toGroup && string(t.Kind) == ref.toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == ref.to.Name)
			})
	})
}

// grantHint says which grant is missing.
func grantHint(ref reference) string {
	return fmt.Sprintf("write a ReferenceGrant in namespace %s from %s of namespace %s to %s %s", ref.to.Namespace, ref.fromKind, ref.fromNamespace, ref.toKind, ref.to.Name)
}

// certificate finds the Secret of a certificateRef or clientCertificateRef, and returns its name in the plan; else the reason
// why it can't be used, as a condition has it.
func (x *index) certificate(at manifest.Cursor, ref v1.SecretObjectReference, fromKind, fromNamespace string, invalid string) (name, reason, message string) {
	toGroup, kind := value(ref.Group, ""), value(ref.Kind, "Secret")
	to := ident.Name{Namespace: value(ref.Namespace, fromNamespace), Name: string(ref.Name)}
	full := reference{fromGroup: group, fromKind: fromKind, fromNamespace: fromNamespace, toGroup: toGroup, toKind: kind, to: to}
	switch s := x.secrets[to]; {
	case toGroup != "" || kind != "Secret":
		message = fmt.Sprintf("a certificate is a Secret, not a %s of %q", kind, toGroup)
		x.Warning(manifest.CodeListener, at, "name a Secret of type kubernetes.io/tls", "%s", message)
		return "", invalid, message
	case !x.permitted(full):
		message = fmt.Sprintf("no ReferenceGrant permits the use of Secret %s", to)
		x.Warning(manifest.CodeGrant, at, grantHint(full), "%s", message)
		return "", string(v1.ListenerReasonRefNotPermitted), message
	case s == nil || len(s.Key) == 0:
		message = fmt.Sprintf("there is no Secret %s with a certificate and its key", to)
		x.Warning(manifest.CodeListener, at, "create it with tls.crt and tls.key", "%s", message)
		return "", invalid, message
	default:
		return s.Secret.Name, "", ""
	}
}

// authority finds the certificates of one authority reference, a ConfigMap or Secret with ca.crt; else the reason why not.
func (x *index) authority(at manifest.Cursor, ref reference, code string) (text, reason, message string) {
	switch {
	case ref.toGroup != "" || ref.toKind != "ConfigMap" && ref.toKind != "Secret":
		message = fmt.Sprintf("authorities are a ConfigMap or a Secret, not a %s of %q", ref.toKind, ref.toGroup)
		x.Warning(code, at, "name a ConfigMap with the key ca.crt", "%s", message)
		return "", "InvalidKind", message
	case !x.permitted(ref):
		message = fmt.Sprintf("no ReferenceGrant permits the use of %s %s", ref.toKind, ref.to)
		x.Warning(manifest.CodeGrant, at, grantHint(ref), "%s", message)
		return "", string(v1.ListenerReasonRefNotPermitted), message
	case ref.toKind == "ConfigMap" && x.maps[ref.to] != nil:
		m := x.maps[ref.to]
		m.used = true
		text = m.authorities
	case ref.toKind == "Secret" && x.secrets[ref.to] != nil:
		text = string(x.secrets[ref.to].Authorities)
	}
	if !hasCertificates(text) {
		message = fmt.Sprintf("there is no %s %s with PEM certificates in ca.crt", ref.toKind, ref.to)
		x.Warning(code, at, "create it", "%s", message)
		return "", "InvalidCACertificateRef", message
	}
	return text, "", ""
}

func hasCertificates(text string) bool {
	n := 0
	for rest := []byte(text); ; n++ {
		block, more := pem.Decode(rest)
		if block == nil {
			return n > 0
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return false
		}
		rest = more
	}
}

// keepAuthorities puts authorities that are of no single Secret into the configuration and returns their name in the plan.
// No object's name holds a colon.
func (x *index) keepAuthorities(o *manifest.Object, what string, texts []string) string {
	name := ident.Name{Namespace: o.Name.Namespace, Name: strings.ToLower(o.Kind) + ":" + o.Name.Name + ":" + what}
	if slices.ContainsFunc(x.out.Secrets, func(s model.Secret) bool { return s.Secret.Name == name.String() }) {
		return name.String() // of another listener of the port
	}
	for i, t := range texts {
		texts[i] = strings.TrimSuffix(t, "\n") + "\n"
	}
	x.out.Secrets = append(x.out.Secrets, model.Secret{
		Meta:   model.Meta{Name: name, Origin: o.Origin, Created: o.Created},
		Secret: plan.Secret{Name: name.String(), Authorities: []byte(strings.Join(texts, "")), Origin: o.Origin},
	})
	return name.String()
}

// value returns what p points to, or what is meant without it.
func value[T ~string](p *T, otherwise string) string {
	if p == nil {
		return otherwise
	}
	return string(*p)
}
