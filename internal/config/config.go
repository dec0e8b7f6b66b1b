// Package config turns what users wrote into the model: objects in, one model.Config and every diagnostic out.
//
// It is pure and holds no state. Reading bytes is config/manifest's part, watching a folder config/file's; each dialect
// (config/core, config/local, config/istio, config/linkerd, config/smi) translates its own kinds and knows no other.
// This package owns the table of kinds, and what no dialect can see alone: unknown kinds and duplicate objects.
package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Object is one object as it was written.
type Object = manifest.Object

// Parse reads every object of a file: YAML documents or JSON. file is the name that diagnostics show, and the base of
// relative paths in the objects.
func Parse(file string, data []byte) ([]Object, []model.Diagnostic) {
	return manifest.Parse(file, data)
}

// ParseFound is Parse for a file that was found in a folder: foreign says that it is no manifest, which is a warning there.
func ParseFound(file string, data []byte) (objects []Object, ds []model.Diagnostic, foreign bool) {
	return manifest.ParseFound(file, data)
}

// Translate makes one configuration of all objects. It reports everything that is wrong at once, by place. The
// configuration holds the objects without an error; Settle finds what stands in for the others. Neither result refers to objs.
func Translate(objs []Object) (*model.Config, []model.Diagnostic) {
	out := &model.Config{}
	var report manifest.Report
	table := newTable()
	seen := map[Key]*Object{}
	for i := range objs {
		o := &objs[i]
		kind := table.find(o, &report)
		if kind == nil {
			continue
		}
		id := KeyOf(o)
		if first, ok := seen[id]; ok {
			report.Error(manifest.CodeDuplicate, o.Root(), "remove one of them, or give it another name",
				"the object stands twice, first at %s%s", place(first.Origin), otherVersion(first, o))
			continue
		}
		seen[id] = o
		table.translate(kind, o, out, &report)
	}
	table.finish(out, &report)
	return out, report.Diagnostics()
}

// finish has every dialect finish, once all objects are known.
func (t *table) finish(out *model.Config, report *manifest.Report) {
	sortConfig(out)
	for _, d := range t.dialects {
		if d.Finish != nil {
			d.Finish(out, report)
		}
	}
	sortConfig(out)
}

// Outline is Translate for looking at what stands between objects: it holds those with errors too, as far as they can be read.
// Nothing of it is ever put in force.
func Outline(objs []Object) *model.Config {
	out := &model.Config{}
	table := newTable()
	for i := range objs {
		o := &objs[i]
		kind := table.find(o, &manifest.Report{})
		if kind == nil {
			continue
		}
		var report manifest.Report // what is wrong is for those to know that finish with what they remember
		if spec, _ := kind.Check(o, &report); spec != nil {
			out.Append(table.perform(kind, o, spec, &report))
		}
	}
	table.finish(out, &manifest.Report{})
	for i := range out.Workloads { // one without a place cannot be looked at
		w := &out.Workloads[i]
		if _, err := netip.ParseAddr(w.Address); err != nil && w.Run == nil {
			w.Address = "127.0.0.1"
		}
	}
	return out
}

// Key is what makes an object the same object, whatever version it is written in.
type Key struct {
	Group, Kind string
	Name        ident.Name
}

// KeyOf returns the Key of an object.
func KeyOf(o *Object) Key { return Key{o.Group(), o.Kind, o.Name} }

// translate adds one object to out, or nothing of it when it has an error. Dialects remember objects until they finish, so one
// that may have a mistake is first translated on a stage.
func (t *table) translate(kind *manifest.Kind, o *Object, out *model.Config, report *manifest.Report) {
	all, before := report.Len()
	spec, ok := kind.Check(o, report)
	found, after := report.Len()
	switch {
	case !ok:
		if spec != nil {
			t.rehearse(o, spec, report)
			report.Besides(all, found)
		}
		return
	case after > before && !kind.KeepsBroken: // what is refused was read: nothing said about the rest is doubtful
		t.rehearse(o, spec, report)
		return
	}
	if len(o.Annotations) > 0 {
		var tried manifest.Report
		t.rehearse(o, spec, &tried)
		if _, errors := tried.Len(); errors > 0 {
			report.Add(tried.Diagnostics()...)
			if kind.KeepsBroken {
				t.perform(kind, o, spec, &tried) // to what it finds once more nobody listens
			}
			return
		}
	}
	own := t.perform(kind, o, spec, report)
	if _, after = report.Len(); after == before {
		out.Append(own)
	}
}

// perform translates an object and what its annotations say.
func (t *table) perform(kind *manifest.Kind, o *Object, spec []byte, report *manifest.Report) *model.Config {
	var own model.Config
	kind.Translate(o, spec, &own, report)
	for _, d := range t.dialects {
		if d.Annotate != nil {
			d.Annotate(o, &own, report)
		}
	}
	return &own
}

// rehearse translates an object by dialects that never finish: for its mistakes alone.
func (t *table) rehearse(o *Object, spec []byte, report *manifest.Report) {
	if t.stage == nil {
		t.stage = newTable()
	}
	if kind := t.stage.find(o, &manifest.Report{}); kind != nil {
		t.stage.perform(kind, o, spec, report)
	}
}

func place(o ident.Origin) string {
	if p := o.Place(); p != "" {
		return p
	}
	return o.String()
}

func otherVersion(first, second *Object) string {
	if first.APIVersion == second.APIVersion {
		return ""
	}
	return fmt.Sprintf(" as %s (versions of a kind name the same object)", first.APIVersion)
}

// sortConfig puts every list in the order of names, so that the order of files means nothing.
func sortConfig(c *model.Config) {
	byName(c.Services, func(v *model.Service) *model.Meta { return &v.Meta })
	byName(c.Workloads, func(v *model.Workload) *model.Meta { return &v.Meta })
	byName(c.Routings, func(v *model.Routing) *model.Meta { return &v.Meta })
	byName(c.Traffic, func(v *model.DestinationPolicy) *model.Meta { return &v.Meta })
	byName(c.Gateways, func(v *model.Gateway) *model.Meta { return &v.Meta })
	byName(c.PeerAuth, func(v *model.PeerAuth) *model.Meta { return &v.Meta })
	byName(c.Policies, func(v *model.AuthzPolicy) *model.Meta { return &v.Meta })
	byName(c.Splits, func(v *model.Split) *model.Meta { return &v.Meta })
	byName(c.Profiles, func(v *model.Profile) *model.Meta { return &v.Meta })
	byName(c.Secrets, func(v *model.Secret) *model.Meta { return &v.Meta })
	byName(c.Namespaces, func(v *model.Namespace) *model.Meta { return &v.Meta })
	byName(c.Endpoints, func(v *model.EndpointGroup) *model.Meta { return &v.Meta })
	byName(c.Sidecars, func(v *model.SidecarPolicy) *model.Meta { return &v.Meta })
	byName(c.Proxies, func(v *model.ProxyConfig) *model.Meta { return &v.Meta })
	byName(c.RateLimits, func(v *model.RateLimit) *model.Meta { return &v.Meta })
	byName(c.Egress, func(v *model.Egress) *model.Meta { return &v.Meta })
	slices.SortStableFunc(c.Statuses, func(a, b model.Status) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind), a.Name.Compare(b.Name))
	})
}

// byName sorts by name, then kind. What one object became several of stays in order.
func byName[T any](list []T, meta func(*T) *model.Meta) {
	slices.SortStableFunc(list, func(a, b T) int {
		x, y := meta(&a), meta(&b)
		return cmp.Or(x.Name.Compare(y.Name), cmp.Compare(x.Origin.Kind, y.Origin.Kind))
	})
}

// Kinds returns every kind that Malha translates, with its table of fields.
func Kinds() []manifest.Kind { return kinds() }

// KindName is a kind with the words that people call it by on the command line; Short may be "".
type KindName struct{ Kind, Plural, Short string }

// KindNames returns every kind that Malha translates once, in the order of dialects.
func KindNames() []KindName {
	var out []KindName
	for _, k := range kinds() {
		if !slices.ContainsFunc(out, func(n KindName) bool { return n.Kind == k.Kind }) {
			out = append(out, KindName{k.Kind, plural(strings.ToLower(k.Kind)), shortNames[k.Kind]})
		}
	}
	return out
}

// GroupsOf returns the groups that have a kind of a name, in the order of dialects.
func GroupsOf(kind string) []string {
	var out []string
	for _, k := range kinds() {
		if k.Kind == kind && !slices.Contains(out, k.Group) {
			out = append(out, k.Group)
		}
	}
	return out
}

// shortNames are those of the kinds' CRDs.
var shortNames = map[string]string{
	"Service": "svc", "VirtualService": "vs", "DestinationRule": "dr", "Gateway": "gw",
	"PeerAuthentication": "pa", "AuthorizationPolicy": "ap", "ServiceProfile": "sp", "TrafficSplit": "ts", "Workload": "wl",
	"Namespace": "ns", "Ingress": "ing", "Endpoints": "ep", "ServiceEntry": "se", "WorkloadEntry": "we", "WorkloadGroup": "wg",
	"ConfigMap": "cm", "GatewayClass": "gc", "ReferenceGrant": "refgrant", "BackendTLSPolicy": "btlspolicy", "Server": "srv",
}

func plural(kind string) string {
	if strings.HasSuffix(kind, "s") {
		if strings.HasSuffix(kind, "ss") {
			return kind + "es"
		}
		return kind
	}
	if stem, ok := strings.CutSuffix(kind, "y"); ok && !strings.HasSuffix(kind, "ay") {
		return stem + "ies"
	}
	return kind + "s"
}
