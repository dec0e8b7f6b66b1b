package istio

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

var peerAuthenticationFields = manifest.Work("", "selector", "mtls", "portLevelMtls")

func peerAuthentication(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &security.PeerAuthentication{}
	if !r.decode(spec, in) {
		return
	}
	p := model.PeerAuth{
		Meta: o.Meta(), Mode: tlsMode(in.GetMtls()),
		Selector: r.selector(at.Field("selector").Field("matchLabels"), in.GetSelector().GetMatchLabels()),
	}
	for _, port := range slices.Sorted(maps.Keys(in.GetPortLevelMtls())) {
		here := at.Field("portLevelMtls").Key(strconv.FormatUint(uint64(port), 10))
		if p.Ports == nil {
			p.Ports = map[int]*plan.TLSMode{}
		}
		p.Ports[r.port(here, port)] = tlsMode(in.GetPortLevelMtls()[port])
	}
	if len(p.Ports) > 0 && len(p.Selector) == 0 {
		r.Error(manifest.CodePeerAuth, at.Field("portLevelMtls"), "add selector: {matchLabels: {…}}", "`portLevelMtls` needs a selector: ports belong to workloads")
	}
	if o.Name.Namespace == ident.RootNamespace && len(p.Selector) > 0 {
		r.Warning(manifest.CodePeerAuth, at.Field("selector"), "move it to the namespace of the workloads", "a PeerAuthentication with a selector has no effect in %s, where policies are for the whole mesh", ident.RootNamespace)
		return
	}
	out.PeerAuth = append(out.PeerAuth, p)
}

// tlsMode reads a mode; nil inherits.
func tlsMode(in *security.PeerAuthentication_MutualTLS) *plan.TLSMode {
	var mode plan.TLSMode
	switch in.GetMode() {
	case security.PeerAuthentication_MutualTLS_DISABLE:
		mode = plan.TLSDisable
	case security.PeerAuthentication_MutualTLS_PERMISSIVE:
		mode = plan.TLSPermissive
	case security.PeerAuthentication_MutualTLS_STRICT:
		mode = plan.TLSStrict
	default:
		return nil
	}
	return &mode
}

var authorizationPolicyFields = manifest.Join(
	manifest.Work("", "selector", "action"),
	manifest.Work("rules[].from[].source.", "principals", "notPrincipals", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts",
		"ipBlocks", "notIpBlocks"),
	manifest.Work("rules[].", "to", "when"),
	manifest.Fields{{Path: "action", Value: "CUSTOM", Support: manifest.Refused, Note: "use ALLOW or DENY: there are no external authorizers yet"}},
	manifest.Refuse("use a selector", "targetRef", "targetRefs"),
	manifest.Refuse("use ipBlocks, the address of the peer", "rules[].from[].source.remoteIpBlocks", "rules[].from[].source.notRemoteIpBlocks"),
	manifest.Refuse("use principals", "rules[].from[].source.trustDomains", "rules[].from[].source.notTrustDomains"),
	manifest.Refuse("tokens of requests are not read yet", "rules[].from[].source.requestPrincipals", "rules[].from[].source.notRequestPrincipals"),
)

// dryRun is the annotation of a policy that is only tried out.
const dryRun = "istio.io/dry-run"

func authorizationPolicy(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &security.AuthorizationPolicy{}
	if !r.decode(spec, in) {
		return
	}
	p := model.AuthzPolicy{
		Meta:     o.Meta(),
		Selector: r.selector(at.Field("selector").Field("matchLabels"), in.GetSelector().GetMatchLabels()),
		Policy:   plan.Policy{Name: o.Name.String(), Action: plan.Allow, Origin: o.Origin},
	}
	switch in.GetAction() {
	case security.AuthorizationPolicy_DENY:
		p.Policy.Action = plan.Deny
	case security.AuthorizationPolicy_AUDIT:
		p.Policy.Action = plan.Audit
	}
	if v, ok := o.Annotations[dryRun]; ok {
		on, err := strconv.ParseBool(v)
		if err != nil {
			r.Error(manifest.CodeBadValue, o.Root().Field("metadata").Field("annotations").Key(dryRun), `write "true" or "false"`, "annotation %s must be true or false, not %q", dryRun, v)
		}
		p.Policy.DryRun = on
	}
	for i, rule := range in.GetRules() {
		p.Policy.Rules = append(p.Policy.Rules, r.policyRule(at.Field("rules").Index(i), rule))
	}
	if len(in.GetRules()) == 0 && p.Policy.Action != plan.Allow {
		r.Warning(manifest.CodePolicy, at, "add rules; rules: [{}] is every request", "the policy has no rules: it never matches")
	}
	out.Policies = append(out.Policies, p)
}

func (r *reader) policyRule(at manifest.Cursor, in *security.Rule) plan.PolicyRule {
	out := plan.PolicyRule{Origin: at.Origin()}
	for _, field := range []string{"from", "to", "when"} { // an empty list would widen the rule to everything
		if here := at.Field(field); here.Set() && !here.Index(0).Set() {
			r.Error(manifest.CodePolicy, here, "remove it, or say what it asks for", "`%s` is an empty list", field)
		}
	}
	for i, f := range in.GetFrom() {
		out.From = append(out.From, r.source(at.Field("from").Index(i).Field("source"), f.GetSource()))
	}
	for i, t := range in.GetTo() {
		out.To = append(out.To, r.operation(at.Field("to").Index(i).Field("operation"), t.GetOperation()))
	}
	for i, w := range in.GetWhen() {
		out.When = append(out.When, r.when(at.Field("when").Index(i), w))
	}
	return out
}

// filled reports a source or operation that asks for nothing: it would hold for everyone.
func (r *reader) filled(at manifest.Cursor, name string, n int) {
	if n == 0 {
		r.Error(manifest.CodePolicy, at, "remove it, or say what it asks for", "the %s is empty: it would hold for everything", name)
	}
}

func (r *reader) source(at manifest.Cursor, in *security.Source) plan.Source {
	r.filled(at, "source", len(in.GetPrincipals())+len(in.GetNotPrincipals())+len(in.GetNamespaces())+len(in.GetNotNamespaces())+
		len(in.GetServiceAccounts())+len(in.GetNotServiceAccounts())+len(in.GetIpBlocks())+len(in.GetNotIpBlocks())+
		len(in.GetRequestPrincipals())+len(in.GetNotRequestPrincipals())+len(in.GetRemoteIpBlocks())+len(in.GetNotRemoteIpBlocks())+
		len(in.GetTrustDomains())+len(in.GetNotTrustDomains()))
	if len(in.GetServiceAccounts())+len(in.GetNotServiceAccounts()) > 0 &&
		len(in.GetPrincipals())+len(in.GetNotPrincipals())+len(in.GetNamespaces())+len(in.GetNotNamespaces()) > 0 {
		r.Error(manifest.CodeExclusive, at, "keep one of them", "`serviceAccounts` excludes `principals` and `namespaces`")
	}
	return plan.Source{
		Principals:    append(r.principals(at.Field("principals"), in.GetPrincipals()), r.accounts(at.Field("serviceAccounts"), in.GetServiceAccounts())...),
		NotPrincipals: append(r.principals(at.Field("notPrincipals"), in.GetNotPrincipals()), r.accounts(at.Field("notServiceAccounts"), in.GetNotServiceAccounts())...),
		Namespaces:    r.namespaces(at.Field("namespaces"), in.GetNamespaces()),
		NotNamespaces: r.namespaces(at.Field("notNamespaces"), in.GetNotNamespaces()),
		IPBlocks:      r.blocks(at.Field("ipBlocks"), in.GetIpBlocks()),
		NotIPBlocks:   r.blocks(at.Field("notIpBlocks"), in.GetNotIpBlocks()),
	}
}

func (r *reader) operation(at manifest.Cursor, in *security.Operation) plan.Operation {
	r.possible(at.Field("hosts"), "host", noneOfHosts, in.GetHosts())
	r.possible(at.Field("notHosts"), "host", noneOfHosts, in.GetNotHosts())
	r.filled(at, "operation", len(in.GetHosts())+len(in.GetNotHosts())+len(in.GetPorts())+len(in.GetNotPorts())+
		len(in.GetMethods())+len(in.GetNotMethods())+len(in.GetPaths())+len(in.GetNotPaths()))
	fold := func(ms []match.String) []match.String {
		for i := range ms {
			ms[i].IgnoreCase = true
		}
		return ms
	}
	return plan.Operation{
		Hosts:      fold(r.patterns(at.Field("hosts"), in.GetHosts())),
		NotHosts:   fold(r.patterns(at.Field("notHosts"), in.GetNotHosts())),
		Ports:      r.ports(at.Field("ports"), in.GetPorts()),
		NotPorts:   r.ports(at.Field("notPorts"), in.GetNotPorts()),
		Methods:    r.methods(at.Field("methods"), in.GetMethods()),
		NotMethods: r.methods(at.Field("notMethods"), in.GetNotMethods()),
		Paths:      r.paths(at.Field("paths"), in.GetPaths()),
		NotPaths:   r.paths(at.Field("notPaths"), in.GetNotPaths()),
	}
}

// pattern reads a value of a policy: "*" is any value that is there, a star at one end makes a prefix or a suffix, and
// anywhere else it is only a star.
func pattern(s string) match.String {
	switch {
	case s == "*":
		return match.String{Kind: match.NonEmpty}
	case strings.HasSuffix(s, "*"):
		return match.String{Kind: match.Prefix, Value: strings.TrimSuffix(s, "*")}
	case strings.HasPrefix(s, "*"):
		return match.String{Kind: match.Suffix, Value: strings.TrimPrefix(s, "*")}
	}
	return match.String{Kind: match.Exact, Value: s}
}

func (r *reader) patterns(at manifest.Cursor, in []string) []match.String {
	var out []match.String
	for i, s := range in {
		out = append(out, r.pattern(at.Index(i), s))
	}
	return out
}

// pattern is pattern, and says what is wrong with the value.
func (r *reader) pattern(at manifest.Cursor, s string) match.String {
	if s == "" {
		r.Error(manifest.CodePolicy, at, `"*" is any value`, "the value is empty")
	}
	m := pattern(s)
	switch body := strings.Trim(s, "*"); {
	case strings.Contains(body, "*"):
		r.Warning(manifest.CodePolicy, at, "put the star at the end or at the start", "a star inside %q stands for itself only", s)
	case strings.Contains(m.Value, "*"):
		r.Warning(manifest.CodePolicy, at, "keep one star, at the end or at the start", "of several stars in %q one stands for anything, and the others for themselves", s)
	}
	return m
}

// Bytes that no authority (RFC 3986 section 3.2) and no method (RFC 9110 section 5.6.2) has.
const (
	noneOfHosts   = " \t/\\?#@\"<>{}|^`,;"
	noneOfMethods = " \t/\\?@\"<>{}()[],:;="
)

// possible warns of values that no request has: a DENY policy with one denies nothing.
func (r *reader) possible(at manifest.Cursor, what, never string, in []string) {
	for i, s := range in {
		if strings.ContainsAny(s, never) {
			r.Warning(manifest.CodePolicy, at.Index(i), "correct it, or remove it", "no request has the %s %q", what, s)
		}
	}
}

// methods reads methods, which are compared with their case (RFC 9110 section 9.1): a DENY policy with "get" denies nothing.
func (r *reader) methods(at manifest.Cursor, in []string) []match.String {
	r.possible(at, "method", noneOfMethods, in)
	for i, s := range in {
		if upper := strings.ToUpper(s); upper != s {
			r.Warning(manifest.CodePolicy, at.Index(i), "write "+upper, "methods are compared with their case: %q is not %s", s, upper)
		}
	}
	return r.patterns(at, in)
}

// namespaces reads names of namespaces. In them Istio takes a star for any characters wherever it stands (srcNamespaceGenerator).
func (r *reader) namespaces(at manifest.Cursor, in []string) []match.String {
	var out []match.String
	for i, s := range in {
		if s != "" && !namesSome(s) {
			hint := "lower-case letters, digits and '-', at most 63 of them"
			if lower := strings.ToLower(s); namesSome(lower) {
				hint = "write " + lower
			}
			r.Warning(manifest.CodePolicy, at.Index(i), hint, "no namespace has the name %q", s)
		}
		m := pattern(s)
		if strings.Contains(m.Value, "*") {
			m = match.String{Kind: match.Regex, Value: strings.ReplaceAll(regexp.QuoteMeta(s), `\*`, ".*")}
			if _, err := m.Compile(); err != nil {
				r.Error(manifest.CodePolicy, at.Index(i), "a namespace has at most 63 bytes", "%v", err)
			}
		} else {
			m = r.pattern(at.Index(i), s)
		}
		out = append(out, m)
	}
	return out
}

// namesSome reports whether a namespace, whose name is a DNS label, can have the name s, in which a star stands for anything.
func namesSome(s string) bool {
	return manifest.IsDNSLabel(strings.ReplaceAll(s, "*", "a")) || manifest.IsDNSLabel(strings.ReplaceAll(s, "*", ""))
}

func (r *reader) principals(at manifest.Cursor, in []string) []match.String {
	for i, s := range in {
		if rest, ok := strings.CutPrefix(s, "spiffe://"); ok {
			r.Error(manifest.CodePolicy, at.Index(i), "write "+rest, "a principal is written without spiffe://; this one would never match")
		}
	}
	return r.patterns(at, in)
}

// accounts reads "namespace/account", or "account" of the policy's own namespace, in any trust domain.
func (r *reader) accounts(at manifest.Cursor, in []string) []match.String {
	var out []match.String
	for i, s := range in {
		name, err := ident.ParseName(s, r.object.Name.Namespace)
		if err != nil || !manifest.IsDNSLabel(name.Namespace) || !manifest.IsSubdomain(name.Name) {
			r.Error(manifest.CodePolicy, at.Index(i), "write NAMESPACE/ACCOUNT or ACCOUNT, without a star", "%q is not a service account", s)
			continue
		}
		out = append(out, match.String{Kind: match.Suffix, Value: "/ns/" + name.Namespace + "/sa/" + name.Name})
	}
	return out
}

// paths reads paths, and templates of them: {*} is one segment, {**} any number of them (Envoy's URI template).
func (r *reader) paths(at manifest.Cursor, in []string) []match.String {
	var out []match.String
	for i, s := range in {
		here := at.Index(i)
		if !strings.ContainsAny(s, "{}") {
			if !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "*") {
				r.Warning(manifest.CodePolicy, here, "start it with /", "no request has the path %q", s)
			}
			if strings.ContainsAny(s, "?#") {
				r.Warning(manifest.CodePolicy, here, "leave the query out", "paths are compared without query: %q never matches", s)
			}
			out = append(out, r.pattern(here, s))
			continue
		}
		var expression strings.Builder
		for n, part := range strings.Split(s, "/") {
			if n > 0 {
				expression.WriteByte('/')
			}
			switch {
			case part == "{*}":
				expression.WriteString(`[^/]+`)
			case part == "{**}":
				expression.WriteString(`.*`)
			case strings.ContainsAny(part, "{}*"):
				r.Error(manifest.CodePolicy, here, "write /a/{*}/b or /a/{**}", "a template is a whole segment of the path: %q is not", part)
			default:
				expression.WriteString(regexp.QuoteMeta(part))
			}
		}
		m := match.String{Kind: match.Regex, Value: expression.String()}
		if _, err := m.Compile(); err != nil {
			r.Error(manifest.CodePolicy, here, "", "the path is too long")
		}
		out = append(out, m)
	}
	return out
}

func (r *reader) blocks(at manifest.Cursor, in []string) []string {
	for i, s := range in {
		r.block(at.Index(i), s)
	}
	return in
}

func (r *reader) block(at manifest.Cursor, s string) {
	_, err := netip.ParseAddr(s)
	if strings.Contains(s, "/") {
		_, err = netip.ParsePrefix(s)
	}
	if err != nil {
		r.Error(manifest.CodePolicy, at, "write 10.0.0.0/8 or 10.1.2.3", "%q is not an address or a CIDR block", s)
	}
}

func (r *reader) ports(at manifest.Cursor, in []string) []int {
	var out []int
	for i, s := range in {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			r.Error(manifest.CodePolicy, at.Index(i), "from 1 to 65535", "%q is not a port", s)
			continue
		}
		out = append(out, int(n))
	}
	return out
}

// conditionKeys are the attributes of `when`, and whether they are supported.
var conditionKeys = map[string]bool{
	"source.ip": true, "source.namespace": true, "source.principal": true, "destination.ip": true, "destination.port": true,
	"remote.ip": false, "source.serviceAccount": false, "source.trustDomain": false, "request.auth.principal": false, "request.auth.audiences": false,
	"request.auth.presenter": false, "connection.sni": false,
}

func (r *reader) when(at manifest.Cursor, in *security.Condition) plan.Condition {
	out := plan.Condition{Key: in.GetKey()}
	key := at.Field("key")
	supported, known := conditionKeys[out.Key]
	header, isHeader := strings.CutPrefix(out.Key, "request.headers[")
	switch {
	case out.Key == "":
		r.Error(manifest.CodeRequired, at, `add key: "request.headers[name]"`, "the condition has no key")
	case isHeader:
		name, closed := strings.CutSuffix(header, "]")
		if !closed || !isToken(name) {
			r.Error(manifest.CodePolicy, key, "write request.headers[name]", "%q names no header", out.Key)
		}
		out.Key = "request.headers[" + strings.ToLower(name) + "]"
	case known && !supported || strings.HasPrefix(out.Key, "request.auth.claims[") || strings.HasPrefix(out.Key, "experimental.envoy."):
		r.Error(manifest.CodeUnsupported, key, "", "conditions on %s are not supported by Malha yet", out.Key)
	case !known:
		names := append(slices.Collect(maps.Keys(conditionKeys)), "request.headers[name]")
		r.Error(manifest.CodePolicy, key, manifest.DidYouMean(out.Key, names), "unknown key %q", out.Key)
	}
	if len(in.GetValues())+len(in.GetNotValues()) == 0 {
		r.Error(manifest.CodePolicy, at, "add values: [...]", "the condition has no values")
	}
	out.Values = r.conditionValues(at.Field("values"), out.Key, in.GetValues())
	out.NotValues = r.conditionValues(at.Field("notValues"), out.Key, in.GetNotValues())
	return out
}

func (r *reader) conditionValues(at manifest.Cursor, key string, in []string) []match.String {
	var check func(at manifest.Cursor, s string)
	switch key {
	case "source.ip", "destination.ip":
		check = r.block
	case "destination.port":
		check = func(at manifest.Cursor, s string) {
			if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
				r.Error(manifest.CodePolicy, at, "from 1 to 65535", "%q is not a port", s)
			}
		}
	case "source.principal":
		return r.principals(at, in)
	case "source.namespace":
		return r.namespaces(at, in)
	default: // a header: "*" asks that it is there, also an empty one, as in Istio (matcher.HeaderMatcher)
		out := r.patterns(at, in)
		for i := range out {
			if out[i].Kind == match.NonEmpty {
				out[i].Kind = match.Present
			}
		}
		return out
	}
	var out []match.String
	for i, s := range in {
		check(at.Index(i), s)
		out = append(out, match.String{Kind: match.Exact, Value: s})
	}
	return out
}
