// Package delta says what would change for which proxies between two sets of plans: listeners, routes, policies,
// destinations and their members.
//
// In come the plans of all proxies before and after; out go Groups: changes that are the same for several proxies are
// told once. It is pure and starts no goroutine. Only what a proxy does counts: where a rule is written (its origin) and
// which loopback ports this machine gave out may differ freely, so plans of a running mesh compare with those of a folder.
package delta

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Action is what happens to a thing.
type Action string

// The actions.
const (
	Added   Action = "added"
	Removed Action = "removed"
	Changed Action = "changed"
	Moved   Action = "moved" // a rule that is tried earlier or later than before, and may have changed too
)

// Change is one thing that is different.
type Change struct {
	Kind   string       `json:"kind"` // proxy, listener, host, route, policy, limit, secret, cluster, endpoint
	Name   string       `json:"name"`
	Action Action       `json:"action"`
	Fields []Field      `json:"fields,omitempty"` // of a change; of a route and a policy that is new or gone, all of it
	Origin ident.Origin `json:"origin,omitzero"`  // of what there is afterwards, else of what there was
}

// Field is one value that is different; "" is absent.
type Field struct {
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Group is the changes that a set of proxies have in common.
type Group struct {
	Proxies []ident.Name `json:"proxies"` // sorted
	Changes []Change     `json:"changes"`
}

// Between compares the plans of a mesh before and after.
func Between(before, after []*plan.Plan) ([]Group, error) {
	was, is := byName(before), byName(after)
	names := make([]ident.Name, 0, len(was)+len(is))
	for n := range was {
		names = append(names, n)
	}
	for n := range is {
		if was[n] == nil {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, ident.Name.Compare)
	m := merger{at: map[string]int{}}
	for _, n := range names {
		changes, err := proxy(n, was[n], is[n])
		if err != nil {
			return nil, fmt.Errorf("comparing the plans of %s: %w", n, err)
		}
		for i := range changes {
			if err := m.add(n, changes[i]); err != nil {
				return nil, err
			}
		}
	}
	return m.groups(), nil
}

func byName(plans []*plan.Plan) map[ident.Name]*plan.Plan {
	out := make(map[ident.Name]*plan.Plan, len(plans))
	for _, p := range plans {
		out[p.Node.Name] = p
	}
	return out
}

// merger tells a change of several proxies once.
type merger struct {
	at   map[string]int // by the change as JSON
	list []merged
}

type merged struct {
	change  Change
	proxies []ident.Name
}

func (m *merger) add(n ident.Name, c Change) error {
	key, err := json.Marshal(c)
	if err != nil {
		return err
	}
	i, ok := m.at[string(key)]
	if !ok {
		i = len(m.list)
		m.at[string(key)] = i
		m.list = append(m.list, merged{change: c})
	}
	m.list[i].proxies = append(m.list[i].proxies, n)
	return nil
}

// groups puts the changes of one set of proxies together: the widest sets first.
func (m *merger) groups() []Group {
	var out []Group
	for _, x := range m.list {
		i := slices.IndexFunc(out, func(g Group) bool { return slices.Equal(g.Proxies, x.proxies) })
		if i < 0 {
			i = len(out)
			out = append(out, Group{Proxies: x.proxies})
		}
		out[i].Changes = append(out[i].Changes, x.change)
	}
	slices.SortStableFunc(out, func(a, b Group) int { return cmp.Compare(len(b.Proxies), len(a.Proxies)) })
	return out
}

// proxy compares the plans of one proxy.
func proxy(n ident.Name, was, is *plan.Plan) ([]Change, error) {
	switch {
	case was == nil:
		return []Change{{Kind: "proxy", Name: n.String(), Action: Added}}, nil
	case is == nil:
		return []Change{{Kind: "proxy", Name: n.String(), Action: Removed}}, nil
	}
	c := &comparer{files: besideManifests(was, is)}
	c.pieces("proxy", n.String(), &was.Node, &is.Node, false)
	if was.Capture != nil || is.Capture != nil {
		c.pieces("capture", "", was.Capture, is.Capture, false)
	}
	c.listeners(was, is)
	c.tables(was, is)
	each(was.Policies, is.Policies, func(p *plan.Policy) string { return p.Name }, func(name string, a, b *plan.Policy) {
		c.pieces("policy", name, a, b, true)
	})
	each(was.Limits, is.Limits, func(l *plan.RateLimit) string { return l.Name }, func(name string, a, b *plan.RateLimit) {
		c.pieces("limit", name, a, b, true)
	})
	each(was.Secrets, is.Secrets, func(s *plan.Secret) string { return c.files.Replace(s.Name) }, func(name string, a, b *plan.Secret) {
		c.pieces("secret", name, shown(a), shown(b), true)
	})
	each(was.Clusters, is.Clusters, func(p *plan.Cluster) string { return p.Name }, func(name string, a, b *plan.Cluster) {
		c.pieces("cluster", name, a, b, false)
	})
	c.endpoints(was, is)
	return c.found, c.err
}

// certificate is what is told of a secret: of its contents enough to tell one from another. A key is never shown, and never
// changes without its certificate.
type certificate struct {
	Certificate string       `json:"certificate,omitempty"`
	Authorities string       `json:"authorities,omitempty"`
	Revoked     string       `json:"revoked,omitempty"`
	Origin      ident.Origin `json:"origin,omitzero"`
}

func shown(s *plan.Secret) *certificate {
	if s == nil {
		return nil
	}
	sum := func(b []byte) string {
		if len(b) == 0 {
			return ""
		}
		return fmt.Sprintf("sha256:%.8x", sha256.Sum256(b))
	}
	return &certificate{sum(s.Certificate), sum(s.Authorities), sum(s.Revoked), s.Origin}
}

// each walks two lists side by side, by name: what only one has is nil on the other side. Of those with one name, replicas say, the
// second is "NAME (2)".
func each[T any](was, is []T, name func(*T) string, visit func(name string, a, b *T)) {
	before, after := numbered(was, name), numbered(is, name)
	old, seen := make(map[string]*T, len(was)), make(map[string]bool, len(is))
	for i, n := range before {
		old[n] = &was[i]
	}
	for i, n := range after {
		seen[n] = true
		visit(n, old[n], &is[i])
	}
	for i, n := range before {
		if !seen[n] {
			visit(n, &was[i], nil)
		}
	}
}

func numbered[T any](list []T, name func(*T) string) []string {
	out, times := make([]string, len(list)), make(map[string]int, len(list))
	for i := range list {
		n := name(&list[i])
		if times[n]++; times[n] > 1 {
			out[i] = fmt.Sprintf("%s (%d)", n, times[n])
		} else {
			out[i] = n
		}
	}
	return out
}

// besideManifests spells certificates that are files from the folder of the manifest that names them: where that folder lies, and
// from where it was looked at, is no difference.
func besideManifests(plans ...*plan.Plan) *strings.Replacer {
	const file = "file:"
	short := map[string]string{}
	for _, p := range plans {
		for i := range p.Secrets {
			s := &p.Secrets[i]
			paths, ok := strings.CutPrefix(s.Name, file)
			if !ok {
				continue
			}
			list := strings.Split(paths, ",")
			for j := range list {
				list[j] = seenFrom(path.Dir(s.Origin.File), list[j])
			}
			short[s.Name] = file + strings.Join(list, ",")
		}
	}
	// One name may begin with another: of those the longer one is meant, so it is looked for first.
	names := slices.SortedFunc(maps.Keys(short), func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	pairs := make([]string, 0, 2*len(names))
	for _, n := range names {
		pairs = append(pairs, n, short[n])
	}
	return strings.NewReplacer(pairs...)
}

// seenFrom returns the way from a folder to a file. A file with which the folder has only the root in common keeps its whole path.
func seenFrom(folder, file string) string {
	if path.IsAbs(folder) != path.IsAbs(file) {
		return file
	}
	up := ""
	for ; folder != "." && folder != "/"; folder = path.Dir(folder) {
		if rest, ok := strings.CutPrefix(file, folder+"/"); ok {
			return up + rest
		}
		up += "../"
	}
	if folder == "/" {
		return file
	}
	return up + file
}

// comparer collects the changes of one proxy.
type comparer struct {
	files *strings.Replacer
	found []Change
	err   error
}

func (c *comparer) add(ch Change) { c.found = append(c.found, ch) }

func (c *comparer) fields(v any) map[string]string {
	flat, err := flatten(v)
	if err != nil && c.err == nil {
		c.err = err
	}
	out := make(map[string]string, len(flat))
	for k, v := range flat {
		out[c.files.Replace(k)] = c.files.Replace(v)
	}
	return out
}

// pieces reports a thing before (a) and after (b), each a pointer, nil where there is none. whole tells all of what is new
// or gone.
func (c *comparer) pieces(kind, name string, a, b any, whole bool) {
	ch := Change{Kind: kind, Name: name, Origin: originOf(b)}
	switch {
	case absent(a):
		ch.Action = Added
		if whole {
			ch.Fields = different(nil, c.fields(b))
		}
	case absent(b):
		ch.Action, ch.Origin = Removed, originOf(a)
		if whole {
			ch.Fields = different(c.fields(a), nil)
		}
	default:
		if ch.Fields = different(c.fields(a), c.fields(b)); len(ch.Fields) == 0 {
			return
		}
		ch.Action = Changed
	}
	c.add(ch)
}

func (c *comparer) listeners(was, is *plan.Plan) {
	strip := func(ls []plan.Listener) []plan.Listener {
		out := slices.Clone(ls)
		for i := range out {
			out[i].Bind = "" // given out by the machine
			out[i].Policies = slices.Sorted(slices.Values(out[i].Policies))
		}
		return out
	}
	each(strip(was.Listeners), strip(is.Listeners), func(l *plan.Listener) string { return l.Name }, func(name string, a, b *plan.Listener) {
		c.pieces("listener", name, a, b, false)
	})
}

func (c *comparer) tables(was, is *plan.Plan) {
	each(was.Routes, is.Routes, func(t *plan.RouteTable) string { return t.Name }, func(name string, a, b *plan.RouteTable) {
		if a == nil {
			a = &plan.RouteTable{}
		} else if b != nil && a.Otherwise != b.Otherwise {
			c.add(Change{Kind: "host", Name: "any other host of " + name, Action: Changed, Fields: []Field{{"otherwise", string(a.Otherwise), string(b.Otherwise)}}})
		}
		if b == nil {
			b = &plan.RouteTable{}
		}
		each(a.Hosts, b.Hosts, func(h *plan.VirtualHost) string { return h.Name }, c.host)
	})
}

// host compares the rules of one virtual host.
func (c *comparer) host(name string, a, b *plan.VirtualHost) {
	without := func(h *plan.VirtualHost) *plan.VirtualHost {
		if h == nil {
			return nil
		}
		out := *h
		out.Routes = nil
		return &out
	}
	c.pieces("host", name, without(a), without(b), false)
	var was, is []plan.Route
	if a != nil {
		was = a.Routes
	}
	if b != nil {
		is = b.Routes
	}
	c.routes(name, was, is)
}

func (c *comparer) endpoints(was, is *plan.Plan) {
	each(was.Endpoints, is.Endpoints, func(e *plan.Endpoints) string { return e.Cluster }, func(cluster string, a, b *plan.Endpoints) {
		if strings.HasPrefix(cluster, "inbound|") {
			return // the program beside the proxy: where it listens is this machine's affair
		}
		each(members(a), members(b), member, func(name string, x, y *plan.Endpoint) {
			strip := func(e *plan.Endpoint) *plan.Endpoint {
				if e == nil {
					return nil
				}
				out := *e
				if out.Workload.Workload != "" {
					out.Address = ""
				}
				return &out
			}
			c.pieces("endpoint", name+" of "+cluster, strip(x), strip(y), false)
		})
	})
}

func members(e *plan.Endpoints) []plan.Endpoint {
	if e == nil {
		return nil
	}
	return e.Endpoints
}

// member names an endpoint by its workload, as addresses differ from machine to machine.
func member(e *plan.Endpoint) string {
	if e.Workload.Workload != "" {
		return e.Workload.Namespace + "/" + e.Workload.Workload
	}
	return e.Address
}
