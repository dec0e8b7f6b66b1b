package compile

import (
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

// In what people write, the trust domain cluster.local is a pointer to the mesh's own, whatever that is called: the same manifests
// mean the same in every mesh. Source: Istio, "Trust Domain Migration", and its trustdomain.Bundle.

// foreign reports whether cluster.local is another domain than the mesh's.
func foreign(domain string) bool { return domain != "" && domain != ident.DefaultTrustDomain }

// localIdentity returns who an identity means in the mesh's trust domain.
func localIdentity(id ident.Identity, domain string) ident.Identity {
	if foreign(domain) && id.TrustDomain == ident.DefaultTrustDomain {
		id.TrustDomain = domain
	}
	return id
}

// localPrincipals returns what patterns of principals mean in the mesh's trust domain.
func localPrincipals(in []match.String, domain string) []match.String {
	out := slices.Clone(in)
	for i := range out {
		if rest, ok := strings.CutPrefix(out[i].Value, ident.DefaultTrustDomain+"/"); ok && (out[i].Kind == match.Exact || out[i].Kind == match.Prefix) {
			out[i].Value = domain + "/" + rest
		}
	}
	return out
}

// localPolicy returns what a policy means in the mesh's trust domain.
func localPolicy(p plan.Policy, domain string) plan.Policy {
	if !foreign(domain) {
		return p
	}
	p.Rules = slices.Clone(p.Rules)
	for i := range p.Rules {
		r := &p.Rules[i]
		r.From, r.When = slices.Clone(r.From), slices.Clone(r.When)
		for j := range r.From {
			s := &r.From[j]
			s.Principals, s.NotPrincipals = localPrincipals(s.Principals, domain), localPrincipals(s.NotPrincipals, domain)
		}
		for j := range r.When {
			if w := &r.When[j]; w.Key == "source.principal" {
				w.Values, w.NotValues = localPrincipals(w.Values, domain), localPrincipals(w.NotValues, domain)
			}
		}
	}
	return p
}

// localLimit returns whose rate limits are overridden in the mesh's trust domain.
func localLimit(l plan.RateLimit, domain string) plan.RateLimit {
	if !foreign(domain) {
		return l
	}
	l.Rules = slices.Clone(l.Rules)
	for i := range l.Rules {
		r := &l.Rules[i]
		r.Overrides = slices.Clone(r.Overrides)
		for j := range r.Overrides {
			o := &r.Overrides[j]
			o.Identities = slices.Clone(o.Identities)
			for k := range o.Identities {
				o.Identities[k] = localIdentity(o.Identities[k], domain)
			}
		}
	}
	return l
}
