package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
)

// walker follows one request through the proxy of its sender.
type walker struct {
	mesh *Mesh
	node *node
	req  *sent
	walk *Walk
	// client is where the sender's proxy takes the request to come from: the connection, or whom trusted proxies in front of it name.
	client netip.Addr
	// forward is the forward proxy that was entered.
	forward *plan.Listener
}

// Request walks a request from a workload, or through the gateway. The error says what is wrong with the question; what
// goes wrong with the request is an Answer in the Walk.
func (m *Mesh) Request(from ident.Name, r Request) (*Walk, error) {
	n := m.find(from)
	if n == nil {
		_, err := m.Resolve(from.String())
		if err == nil {
			err = fmt.Errorf("no proxy %q", from)
		}
		return nil, err
	}
	req, err := r.canonical()
	if err != nil {
		return nil, err
	}
	if r.Method == "" {
		r.Method = string(req.Method)
	}
	if !r.Client.IsValid() {
		r.Client = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	x := &walker{mesh: m, node: n, req: req, client: r.Client, walk: &Walk{
		From: from, Role: n.plan.Node.Role, Identity: n.plan.Node.Identity.URI(), Request: r,
	}}
	if n.plan.Node.Role == plan.Gateway {
		err = x.edge()
	} else {
		err = x.sidecar()
	}
	if err != nil {
		return nil, err
	}
	x.walk.Outcomes = x.walk.outcomes(x.req.grpc())
	return x.walk, nil
}

// edge enters a gateway.
func (x *walker) edge() error {
	var doors []string
	var found *plan.Listener
	_, _, port, err := message.ParseAuthority([]byte(x.req.target))
	if err != nil {
		return err
	}
	if port == 0 {
		port = 80
		if string(x.req.Scheme) == "https" {
			port = 443
		}
	}
	for i := range x.node.plan.Listeners {
		l := &x.node.plan.Listeners[i]
		if l.Direction != plan.Edge {
			continue
		}
		doors = append(doors, strconv.Itoa(l.Port))
		if l.Port == port || found == nil && strings.HasSuffix(l.Bind, ":"+strconv.Itoa(port)) {
			found = l
		}
	}
	if found == nil {
		return fmt.Errorf("the gateway has no port %d; its ports are %s", port, strings.Join(doors, ", "))
	}
	x.enter(found, "port "+strconv.Itoa(port)+" of the gateway")
	if len(found.ServerNames) > 0 {
		return x.secure(found, found.ServerNames, nil)
	}
	if found.Routes == "" || x.req.opaque {
		if found.Routes != "" {
			return x.answerTCP("NR", "no_tcp_route", "the port takes HTTP, and these bytes are something else", found.Origin)
		}
		x.judge(found, nil)
		return x.opaque(x.tcpRoute(found.TCPRoutes, found.TCP, found.TCPOrigin))
	}
	x.client = x.req.sanitize(found, x.client)
	if x.judge(found, &x.req.Request) && x.limited(found.Limits, found.Origin) {
		x.find(x.node.tables[found.Routes], true)
	}
	return nil
}

// secure enters a listener that tells TLS connections by their server name. rest goes on with one that no name covers; nil
// closes it, as a gateway does.
func (x *walker) secure(l *plan.Listener, names []plan.ServerName, rest func() error) error {
	tls := string(x.req.Scheme) == "https" || string(x.req.Scheme) == "tls"
	sn := serverName(names, string(x.req.Host))
	if tls && (sn == nil || sn.TLS == nil) {
		x.triedNames(names, sn)
	}
	if !tls || sn == nil {
		switch {
		case rest != nil:
			return rest()
		case !tls:
			return x.answerTCP("DPE", "not_tls", "the port takes TLS only", l.Origin)
		}
		return x.answerTCP("NR", "no_server_name", fmt.Sprintf("no server of the port has the name %q", x.req.Host), l.Origin)
	}
	x.walk.Listener.ServerName, x.walk.Listener.Ends = strings.Join(sn.Names, ", "), sn.TLS != nil
	x.walk.Listener.Origin = sn.Origin
	edge := l.Direction == plan.Edge
	if missing := x.missing(sn.TLS); missing != "" {
		return x.answerTCP("NR", "no_certificate", "the secret "+missing+" is not there: nobody can connect", sn.Origin)
	}
	if sn.TLS != nil && sn.Routes != "" {
		x.req.opaque = false
		x.client = x.req.sanitize(l, x.client)
		if (!edge || x.judge(l, &x.req.Request)) && x.limited(slices.Concat(l.Limits, sn.Limits), sn.Origin) {
			x.find(x.node.tables[sn.Routes], true)
		}
		return nil
	}
	if edge {
		x.judge(l, nil)
	}
	if sn.Auto {
		for name, c := range x.node.clusters {
			if c.SNI == string(x.req.Host) {
				return x.opaque([]plan.Destination{{Cluster: name}}, sn.Origin)
			}
		}
	}
	return x.opaque(x.tcpRoute(sn.TCPRoutes, sn.TCP, sn.Origin))
}

// missing returns a secret that the plan does not have and without which a server can't be used; "" when there is none.
func (x *walker) missing(t *plan.ServerTLS) string {
	if t == nil {
		return ""
	}
	have := func(name string) bool {
		return slices.ContainsFunc(x.node.plan.Secrets, func(s plan.Secret) bool { return s.Name == name })
	}
	switch {
	case len(t.Secrets) > 0 && !slices.ContainsFunc(t.Secrets, have):
		return t.Secrets[0]
	case t.Authorities != "" && !have(t.Authorities):
		return t.Authorities
	}
	return ""
}

// judge asks the policies of a gateway's listener; false when they deny.
func (x *walker) judge(l *plan.Listener, req *message.Request) bool {
	j := judgement{engine: x.node.engines[l.Name], node: x.node.plan.Node.Name, port: l.Port, local: addrOf(l.Bind), remote: x.walk.Request.Client, req: req, grpc: x.req.grpc()}
	policies, _, denied := j.ask()
	x.walk.Policies = policies
	if denied != nil {
		x.walk.Answer = denied
	}
	return denied == nil
}

// sidecar enters the sidecar of a workload: an explicit local port when the URL names its address, else the forward proxy.
func (x *walker) sidecar() error {
	var forward *plan.Listener
	for i := range x.node.plan.Listeners {
		l := &x.node.plan.Listeners[i]
		switch {
		case l.Direction != plan.Outbound:
		case l.Bind == x.req.target:
			return x.local(l)
		case l.Forward:
			forward = l
		}
	}
	if forward == nil {
		return fmt.Errorf("the sidecar of %s takes no requests from its workload", x.node.plan.Node.Name)
	}
	port := portOf(x.req)
	i := slices.IndexFunc(forward.Ports, func(p plan.ForwardPort) bool { return p.Port == port })
	table, why := x.node.nothing, fmt.Sprintf("the forward proxy; no service has port %d", port)
	var service *plan.ForwardHost
	if i >= 0 {
		fp := &forward.Ports[i]
		why = fmt.Sprintf("the forward proxy; rules of port %d", port)
		if fp.Routes != "" {
			table = x.node.tables[fp.Routes]
		}
		service = opaqueService(fp.Hosts, string(x.req.Host))
	} else if forward.Routes != "" {
		table = x.node.tables[forward.Routes]
	}
	x.enter(forward, why)
	x.forward = forward
	if x.req.opaque {
		return x.tunnel(table, service)
	}
	x.req.sanitize(forward, x.client)
	if x.limited(forward.Limits, forward.Origin) {
		x.find(table, true)
	}
	return nil
}

// opaqueService returns the service of a port that a host means: the exact one, else that of the longest suffix, or for an IP that
// of the longest network; nil none.
func opaqueService(hosts []plan.ForwardHost, host string) *plan.ForwardHost {
	var best *plan.ForwardHost
	ip, err := netip.ParseAddr(host)
	bits := -1
	for i := range hosts {
		h := &hosts[i]
		if (h.Host == host || ident.HostCovers(h.Host, host)) && (best == nil || ident.CompareSpecific(h.Host, best.Host) < 0) {
			best, bits = h, 1<<8 // no network is longer
		}
		for _, a := range h.Addresses {
			if err != nil {
				break
			}
			n, bad := netip.ParsePrefix(a)
			if one, single := netip.ParseAddr(a); single == nil {
				n, bad = netip.PrefixFrom(one.Unmap(), one.Unmap().BitLen()), nil
			}
			if bad == nil && n.Contains(ip.Unmap()) && n.Bits() > bits {
				best, bits = h, n.Bits()
			}
		}
	}
	return best
}

// tunnel is what becomes of opaque bytes inside a CONNECT tunnel (internal/proxy/server).
func (x *walker) tunnel(table *route.Table, service *plan.ForwardHost) error {
	known := table.Host(x.req.Host) != nil
	switch {
	case service != nil:
		x.walk.Host = &Host{Name: service.Host, Why: "an opaque service", Origin: service.Origin}
		return x.secure(x.forward, service.ServerNames, func() error {
			return x.opaque(x.tcpRoute(service.TCPRoutes, service.TCP, service.Origin))
		})
	case known:
		return x.answerTCP("NR", "tunnel_is_not_http", "the service speaks HTTP, and these bytes are something else", ident.Origin{})
	}
	fate, by, _ := x.unknown(table.Plan().Otherwise)
	if fate == plan.Passthrough {
		x.passthrough()
		return nil
	}
	return x.answerTCP("NR", "host_not_in_registry", x.blockedText(), by)
}

// unknown returns what happens to a request for a host that the mesh does not know, who says so, and what else there is to say.
// otherwise is what is so where addresses don't matter.
func (x *walker) unknown(otherwise plan.Otherwise) (fate plan.Otherwise, by ident.Origin, note string) {
	o := x.node.outside[x.walk.Listener.Name]
	if o == nil || otherwise == plan.NotFound {
		return otherwise, by, ""
	}
	addr, err := netip.ParseAddr(string(x.req.Host))
	fate, origin := o.Fate(addr)
	if origin != nil {
		by = *origin
	}
	if err != nil && fate == plan.Passthrough {
		note = "it may pass at addresses that EgressNetworks leave open"
	}
	return fate, by, note
}

// local enters a listener that stands for one service.
func (x *walker) local(l *plan.Listener) error {
	x.enter(l, "the local port of "+l.Host)
	if x.req.opaque || l.Routes == "" {
		if len(l.TCP)+len(l.TCPRoutes)+len(l.ServerNames) == 0 {
			return x.answerTCP("NR", "no_tcp_route", "the port takes HTTP, and these bytes are something else", l.Origin)
		}
		return x.secure(l, l.ServerNames, func() error {
			return x.opaque(x.tcpRoute(l.TCPRoutes, l.TCP, l.TCPOrigin))
		})
	}
	x.req.sanitize(l, x.client)
	if l.Host != "" {
		x.req.Authority, x.req.Host, x.req.Port = []byte(l.Host), []byte(l.Host), l.Port
		if l.Port != 0 {
			x.req.Authority = strconv.AppendInt([]byte(l.Host+":"), int64(l.Port), 10)
		}
	}
	if x.limited(l.Limits, l.Origin) {
		x.find(x.node.tables[l.Routes], true)
	}
	return nil
}

func (x *walker) enter(l *plan.Listener, why string) {
	x.walk.Listener = Listener{Name: l.Name, Bind: l.Bind, Why: why, Origin: l.Origin}
}

func portOf(s *sent) int {
	switch {
	case s.Port != 0:
		return s.Port
	case string(s.Scheme) == "https", string(s.Scheme) == "tls":
		return 443
	}
	return 80
}

func addrOf(bind string) netip.Addr {
	a, _ := netip.ParseAddrPort(bind) // checked by the compiler; the zero address is in no block
	return a.Addr()
}

// answer ends the walk with a response of the sender's proxy.
func (x *walker) answer(status int, flags, detail, text string, origin ident.Origin) {
	x.walk.Answer = answer(x.node.plan.Node.Name, x.req.grpc(), status, flags, detail, text, origin)
}

func (x *walker) answerTCP(flags, detail, text string, origin ident.Origin) error {
	x.walk.Answer = &Answer{By: x.node.plan.Node.Name, Flags: flags, Detail: detail, Text: text, Origin: origin}
	return nil
}

func answer(by ident.Name, grpc bool, status int, flags, detail, text string, origin ident.Origin) *Answer {
	a := &Answer{By: by, Status: status, Flags: flags, Detail: detail, Text: text, Origin: origin}
	if grpc {
		code := grpcFromHTTP(status)
		a.Status, a.GRPC = 200, &code
	}
	return a
}

// grpcFromHTTP is the mapping of https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md, with our own
// timeouts apart, as internal/proxy/stack answers.
func grpcFromHTTP(status int) int {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 408, 504:
		return 4
	case 429, 502, 503:
		return 14
	}
	return 2
}

// find looks for the rule, and follows it.
func (x *walker) find(t *route.Table, pass bool) {
	if string(x.req.Method) == "CONNECT" {
		x.answer(405, "NR", "connect_not_served", "CONNECT is not served by this listener", x.walk.Listener.Origin)
		return
	}
	steps := t.Explain(x.req.Host, &x.req.Request)
	found := t.Find(x.req.Host, &x.req.Request)
	if found.Host == nil {
		otherwise, by, note := x.unknown(t.Plan().Otherwise)
		if by.IsZero() {
			by = x.walk.Listener.Origin
		}
		switch {
		case otherwise == plan.Passthrough && pass:
			why := []string{steps[0].Reason, x.unseen(), note}
			why = slices.DeleteFunc(why, func(s string) bool { return s == "" })
			x.walk.Host = &Host{Name: string(x.req.Host), Why: strings.Join(why, "; "), Origin: by}
			x.passthrough()
		case otherwise == plan.Block:
			x.answer(502, "NR", "host_not_in_registry", x.blockedText(), by)
		default:
			x.answer(404, "NR", "host_not_found", cmp.Or(x.unseen(), "no service of the mesh has this host"), x.walk.Listener.Origin)
		}
		return
	}
	h := found.Host.Plan()
	x.walk.Host = &Host{Name: h.Name, Why: steps[0].Reason, Origin: h.Origin}
	for _, s := range steps[1:] {
		x.walk.Rules = append(x.walk.Rules, Rule{Name: s.Name, Index: s.Index, Matched: s.Matched, Why: s.Reason, Origin: s.Origin})
	}
	if found.Route == nil {
		x.answer(404, "NR", "route_not_found", "no route matches this request", h.Origin)
		return
	}
	x.follow(found.Route)
}

// follow does what a rule says.
func (x *walker) follow(r *route.Route) {
	p := r.Plan()
	x.walk.Action = actionOf(p)
	if !x.share(r) || !x.limited(p.Limits, p.Origin) {
		return
	}
	switch {
	case p.Redirect != nil:
		x.walk.Answer = x.redirect(r.Redirect(), p.Origin)
		return
	case p.Direct != nil:
		x.walk.Answer = &Answer{By: x.node.plan.Node.Name, Status: p.Direct.Status, Detail: "direct_response", Text: "direct response", Body: string(p.Direct.Body), Origin: p.Origin}
		return
	}
	shares := weights(p.Forward)
	if shares == nil {
		x.answer(503, "NC", "no_destination", "the route has no destination", p.Origin)
		return
	}
	for i := range p.Forward {
		if shares[i] > 0 {
			x.walk.Branches = append(x.walk.Branches, x.branch(r, i, shares[i]))
		}
	}
}

// redirect is the answer that sends a client elsewhere.
func (x *walker) redirect(r *route.Redirect, origin ident.Origin) *Answer {
	location, ok := r.AppendLocation(nil, &x.req.Request)
	if !ok {
		return answer(x.node.plan.Node.Name, x.req.grpc(), 400, "IH", "redirect_path", "the redirected path would not be canonical", origin)
	}
	return &Answer{By: x.node.plan.Node.Name, Status: r.Status(), Detail: "direct_response", Text: "redirect", Location: string(location), Origin: origin}
}

// weights returns the share of each destination; nil when there is none that gets anything.
func weights(ds []plan.Destination) []float64 {
	if len(ds) == 1 {
		return []float64{1}
	}
	total := 0.0
	for i := range ds {
		total += float64(ds[i].Weight)
	}
	if total == 0 {
		return nil
	}
	out := make([]float64, len(ds))
	for i := range ds {
		out[i] = float64(ds[i].Weight) / total
	}
	return out
}

// branch sends a request to one destination.
func (x *walker) branch(r *route.Route, i int, share float64) Branch {
	p := r.Plan()
	d, rewriter := &p.Forward[i], r.Rewriter(i)
	b := Branch{Share: share, Cluster: d.Cluster, Headers: opsOf(&d.Headers), Rewrite: p.Rewrite}
	if d.Rewrite != nil {
		b.Rewrite = d.Rewrite
	}
	if d.Status != 0 {
		b.Answer = answer(x.node.plan.Node.Name, x.req.grpc(), int(d.Status), "NC", "invalid_destination", "the route's destination can't be used", p.Origin)
		return b
	}
	redirect, cors := r.Share(i)
	if x.node.clusters[d.Cluster] == nil {
		redirect, cors = nil, nil // what is not there answers nothing: see reach
	}
	if cors != nil {
		b.CORS, b.Answer = x.shareBy(cors, p.Origin)
	}
	if b.Answer == nil && redirect != nil {
		b.Answer = x.redirect(redirect, p.Origin)
	}
	if b.Answer != nil {
		return b
	}
	req := x.req.copy()
	before := string(req.Path)
	if _, ok := rewriter.Apply(&req.Request, nil); !ok {
		b.Answer = answer(x.node.plan.Node.Name, x.req.grpc(), 400, "IH", "rewrite_path", "the rewritten path would not be canonical", p.Origin)
		return b
	}
	if rewriter.ChangesPath() {
		req.Fields.Set("x-envoy-original-path", []byte(before))
	}
	req.apply(&d.Headers.Request) // as internal/proxy/stack: the destination's, then the rule's
	req.apply(&p.Headers.Request)
	b.Method, b.Authority, b.Path = string(req.Method), string(req.Authority), string(req.Path)
	x.reach(&b, req, p.Origin)
	if p.Session != nil {
		b.Session = p.Session
	}
	b.Mirrors = d.Mirrors
	return b
}

// apply changes headers: remove, set, add.
func (s *sent) apply(ops *plan.FieldOps) {
	for _, name := range ops.Remove {
		s.Fields.Del(name)
	}
	for _, f := range ops.Set {
		if f.Name == "host" || f.Name == ":authority" {
			if authority, host, port, err := message.ParseAuthority([]byte(f.Value)); err == nil {
				s.Authority, s.Host, s.Port = authority, host, port
			}
			continue
		}
		if v := s.value(&f); len(v) > 0 || f.Format == nil {
			s.Fields.Set(f.Name, v)
		}
	}
	for _, f := range ops.Add {
		if v := s.value(&f); len(v) > 0 || f.Format == nil {
			s.Fields.Add(f.Name, v)
		}
	}
}

// value returns what a rule gives a header. Of the variables in it those that are about the request are known; others stay as
// they are written.
func (s *sent) value(f *plan.Field) []byte {
	if f.Format == nil {
		return []byte(f.Value)
	}
	var out []byte
	for i := range f.Format.Parts {
		p := &f.Format.Parts[i]
		v := []byte(p.Text)
		switch p.Var {
		case "":
		case plan.VarRequest:
			if v = s.part(p.Name); len(v) == 0 && p.Else != "" {
				v = s.part(p.Else)
			}
		default:
			v = []byte("%" + string(p.Var) + "%")
		}
		if p.Max > 0 && len(v) > int(p.Max) {
			v = v[:p.Max]
		}
		out = append(out, v...)
	}
	return out
}

// part returns a header of the request, or a part of its first line.
func (s *sent) part(name string) []byte {
	switch name {
	case ":method":
		return s.Method
	case ":path":
		return s.Path
	case ":authority":
		return s.Authority
	case ":scheme":
		return s.Scheme
	}
	v, _ := s.Fields.Get(name)
	return v
}

func opsOf(o *plan.HeaderOps) *plan.HeaderOps {
	if len(o.Request.Set)+len(o.Request.Add)+len(o.Request.Remove)+len(o.Response.Set)+len(o.Response.Add)+len(o.Response.Remove) == 0 {
		return nil
	}
	return o
}

func actionOf(p *plan.Route) *Action {
	a := &Action{Name: p.Name, Origin: p.Origin, Timeout: p.Timeout, Response: p.Response, Idle: p.Idle, Fault: p.Fault, Rewrite: p.Rewrite, Headers: opsOf(&p.Headers), Mirrors: p.Mirrors}
	if r := p.Retry; r != nil && r.Attempts > 0 {
		a.Retry = &Retry{Attempts: r.Attempts, On: conditions(r), PerTry: r.PerTry, BackoffBase: r.BackoffBase, BackoffMax: r.BackoffMax, AnyHost: r.AnyHost, Farther: r.Farther}
	}
	return a
}

// conditions names what a policy retries, with the words of x-envoy-retry-on.
func conditions(r *plan.Retry) []string {
	out := r.On.Names()
	if r.On&plan.RetryStatusCodes != 0 {
		for _, code := range r.StatusCodes {
			out = append(out, strconv.Itoa(code))
		}
	}
	return out
}

// passthrough leaves the mesh.
func (x *walker) passthrough() {
	b := Branch{Share: 1, Cluster: "PassthroughCluster", Service: string(x.req.Host), Port: portOf(x.req), Endpoints: asRequested(string(x.req.Host), portOf(x.req))}
	if !x.req.opaque {
		b.Method, b.Authority, b.Path = string(x.req.Method), string(x.req.Authority), string(x.req.Path)
	}
	x.walk.Branches = []Branch{b}
}

// asRequested is the endpoint of a destination that is wherever the client wants to go.
func asRequested(host string, port int) []Endpoint {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return []Endpoint{{Address: host + ":" + strconv.Itoa(port), Weight: 1, Share: 1}}
}

// opaque carries bytes to destinations.
func (x *walker) opaque(ds []plan.Destination, origin ident.Origin) error {
	if x.walk.Answer != nil {
		x.walk.Answer.Status, x.walk.Answer.GRPC = 0, nil // a policy denied: the connection is closed
		return nil
	}
	if len(ds) == 0 {
		return x.answerTCP("NR", "no_tcp_route", "no rule says where these bytes go", origin)
	}
	shares := weights(ds)
	if shares == nil {
		return x.answerTCP("NC", "no_destination", "the rule has no destination", origin)
	}
	x.walk.Action = &Action{Name: "tcp", Origin: origin}
	for i := range ds {
		if shares[i] == 0 {
			continue
		}
		b := Branch{Share: shares[i], Cluster: ds[i].Cluster}
		x.reach(&b, nil, origin)
		x.walk.Branches = append(x.walk.Branches, b)
	}
	return nil
}
