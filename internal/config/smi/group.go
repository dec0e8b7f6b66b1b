package smi

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// groupSpec is an HTTPRouteGroup: below spec since v1alpha3, beside metadata before.
type groupSpec struct {
	Matches []groupMatch `json:"matches"`
}

type groupMatch struct {
	Name      string   `json:"name"`
	PathRegex string   `json:"pathRegex"`
	Methods   []string `json:"methods"`
	// Headers are an object in the SDK's types and the CRD, and a list of objects in the specification's examples.
	Headers manifest.OneOrMany[map[string]string] `json:"headers"`
}

var groupType = sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[groupSpec](), nil) })

var groupFields = manifest.Work("", "matches")

// group is an HTTPRouteGroup that splits refer to.
type group struct {
	object  *manifest.Object
	matches []model.HTTPMatch
	used    bool
}

func (d *dialect) group(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	var in groupSpec
	if !decode(o, spec, &in, r) {
		return
	}
	at := o.Spec()
	if !at.Set() {
		at = o.Root()
	}
	_, before := r.Len()
	g := &group{object: o}
	if len(in.Matches) == 0 {
		r.Error(manifest.CodeRequired, at, "add matches: [{name: all, pathRegex: .*, methods: ['*']}]", "the HTTPRouteGroup has no matches")
	}
	lines := map[string]int{}
	for i, m := range in.Matches {
		here := at.Field("matches").Index(i)
		if m.Name == "" {
			r.Error(manifest.CodeRequired, here, "add name: …", "the match has no name")
		} else if line, twice := lines[m.Name]; twice {
			r.Error(manifest.CodeSplit, here.Field("name"), "give it another name", "match %q stands twice, first on line %d", m.Name, line)
		}
		lines[m.Name] = here.Line()
		out := model.HTTPMatch{Name: m.Name, Origin: here.Origin()}
		if m.PathRegex != "" {
			out.Path = begins(m.PathRegex, here.Field("pathRegex"), r)
		}
		out.Method = methods(m.Methods, here.Field("methods"), r)
		for j, headers := range m.Headers {
			for _, name := range slices.Sorted(maps.Keys(headers)) {
				at := here.Field("headers")
				if e := at.Index(j); e.Set() {
					at = e
				}
				out.Headers = append(out.Headers, plan.FieldMatch{Name: strings.ToLower(name), Value: *begins(headers[name], at.Key(name), r)})
			}
		}
		g.matches = append(g.matches, out)
	}
	if _, after := r.Len(); after == before {
		d.groups[o.Name] = g
	}
}

// begins is an expression that must match from the beginning; what follows is free (SMI "HTTPRouteGroup").
func begins(expression string, at manifest.Cursor, r *manifest.Report) *match.String {
	if _, err := (match.String{Kind: match.Regex, Value: expression}).Compile(); err != nil {
		r.Error(manifest.CodeBadRegex, at, "regular expressions are RE2", "%v", err)
	}
	out := &match.String{Kind: match.Regex, Value: "(?:" + expression + ").*"}
	if _, err := out.Compile(); err != nil && len(expression) > match.MaxRegex-len(out.Value)+len(expression) {
		r.Error(manifest.CodeBadRegex, at, "", "the expression is too long: at most %d bytes", match.MaxRegex-len(out.Value)+len(expression))
	}
	return out
}

// methods is any of some methods; nil for all.
func methods(in []string, at manifest.Cursor, r *manifest.Report) *match.String {
	for i, m := range in {
		switch {
		case m == "*":
			return nil
		case m == "" || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-") != "":
			r.Error(manifest.CodeBadValue, at.Index(i), "write GET, POST, … or *", "%q is not a method", m)
		}
	}
	switch len(in) {
	case 0:
		return nil
	case 1:
		return &match.String{Kind: match.Exact, Value: in[0]}
	}
	return &match.String{Kind: match.Regex, Value: strings.Join(in, "|")}
}
