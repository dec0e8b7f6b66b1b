package ctl

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

// kind is a kind that `malha get` knows, and the columns of its table beside the name.
type kind struct {
	kind, plural, short string
	columns             []string
	cells               func(spec map[string]any) []string
}

// name returns the singular.
func (k *kind) name() string { return strings.ToLower(k.kind) }

// kinds are those with columns of their own, then all others that are translated.
func kinds() []kind {
	out := []kind{
		{"Workload", "workloads", "wl", []string{"VERSION", "PORTS", "SERVICEACCOUNT"}, nil}, // see workloadTable
		{"Service", "services", "svc", []string{"PORTS", "SELECTOR"}, func(s map[string]any) []string {
			return []string{each(s["ports"], func(v any) string { return text(at(v, "name"), ":", at(v, "port")) }), pairs(s["selector"])}
		}},
		{"VirtualService", "virtualservices", "vs", []string{"HOSTS", "GATEWAYS", "RULES"}, func(s map[string]any) []string {
			return []string{list(s["hosts"]), list(s["gateways"]), count(s["http"], s["tcp"], s["tls"])}
		}},
		{"DestinationRule", "destinationrules", "dr", []string{"HOST", "SUBSETS"}, func(s map[string]any) []string {
			return []string{text(s["host"]), each(s["subsets"], func(v any) string { return text(at(v, "name")) })}
		}},
		{"Gateway", "gateways", "gw", []string{"SERVERS", "SELECTOR"}, func(s map[string]any) []string {
			return []string{each(s["servers"], func(v any) string {
				return text(at(at(v, "port"), "protocol"), ":", at(at(v, "port"), "number"))
			}), pairs(s["selector"])}
		}},
		{"PeerAuthentication", "peerauthentications", "pa", []string{"MODE", "SELECTOR"}, func(s map[string]any) []string {
			return []string{text(at(s["mtls"], "mode")), pairs(at(s["selector"], "matchLabels"))}
		}},
		{"AuthorizationPolicy", "authorizationpolicies", "ap", []string{"ACTION", "RULES", "SELECTOR"}, func(s map[string]any) []string {
			action := text(s["action"])
			if action == "" {
				action = "ALLOW"
			}
			return []string{action, count(s["rules"]), pairs(at(s["selector"], "matchLabels"))}
		}},
		{"TrafficSplit", "trafficsplits", "ts", []string{"SERVICE", "BACKENDS"}, func(s map[string]any) []string {
			return []string{text(s["service"]), each(s["backends"], func(v any) string { return text(at(v, "service"), "=", at(v, "weight")) })}
		}},
		{"ServiceProfile", "serviceprofiles", "sp", []string{"ROUTES"}, func(s map[string]any) []string {
			return []string{count(s["routes"])}
		}},
	}
	for _, n := range config.KindNames() {
		if !slices.ContainsFunc(out, func(k kind) bool { return k.kind == n.Kind }) {
			out = append(out, kind{n.Kind, n.Plural, n.Short, []string{"STATUS"}, nil})
		}
	}
	return out
}

func kindHelp() string {
	var b bytes.Buffer
	t := &table{}
	for _, k := range kinds() {
		t.row(plain(""), plain(k.plural), plain(k.name()), plain(k.short))
	}
	t.write(&b, false)
	return strings.TrimRight(b.String(), "\n")
}

// statusOf says which conditions of an object hold and why others don't: "Accepted, not ResolvedRefs (BackendNotFound)". A
// condition that says that nothing is wrong (Conflicted: false) is left out.
func statusOf(st *local.Status, o local.Object) string {
	group, _, _ := strings.Cut(o.APIVersion, "/")
	var out []string
	add := func(conditions []model.Condition) {
		for _, c := range conditions {
			text := c.Type
			switch bad := c.Type == "Conflicted" || c.Type == "PartiallyInvalid"; {
			case bad && !c.Status:
				continue
			case !bad && !c.Status:
				text = "not " + c.Type + " (" + c.Reason + ")"
			case bad:
				text += " (" + c.Reason + ")"
			}
			if !slices.Contains(out, text) {
				out = append(out, text)
			}
		}
	}
	for _, s := range st.Objects {
		if s.Kind == o.Kind && s.Name == o.Name && s.Group == group {
			add(s.Conditions)
			for _, p := range s.Parents {
				add(p.Conditions)
			}
			for _, l := range s.Listeners {
				add(l.Conditions)
			}
		}
	}
	return strings.Join(out, ", ")
}

func workloadCells(st *local.Status, o local.Object, spec map[string]any) []cell {
	sa := text(spec["serviceAccount"])
	if sa == "" {
		sa = "default"
	}
	row := []cell{plain(dash(o.Labels["version"])),
		plain(dash(each(spec["ports"], func(v any) string { return text(at(v, "name"), ":", at(v, "port")) }))), plain(sa)}
	for _, w := range st.Workloads {
		if w.Name == o.Name {
			return append(row, cell{string(w.Sync), syncTone(w.Sync)}, cell{string(w.Health), healthTone(w.Health)}, plain(strconv.Itoa(w.Restarts)))
		}
	}
	return append(row, plain("-"), plain("-"), plain("-"))
}

// at returns a field of an object that may not be one.
func at(v any, field string) any {
	m, _ := v.(map[string]any)
	return m[field]
}

// text joins scalars; nil is empty.
func text(vs ...any) string {
	var b strings.Builder
	for _, v := range vs {
		if v != nil {
			fmt.Fprint(&b, v)
		}
	}
	return b.String()
}

func each(v any, f func(any) string) string {
	items, _ := v.([]any)
	parts := make([]string, len(items))
	for i, it := range items {
		parts[i] = f(it)
	}
	return strings.Join(parts, ",")
}

func list(v any) string { return each(v, func(v any) string { return text(v) }) }

func pairs(v any) string {
	m, _ := v.(map[string]any)
	parts := make([]string, 0, len(m))
	for k, val := range m {
		parts = append(parts, k+"="+text(val))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func count(vs ...any) string {
	n := 0
	for _, v := range vs {
		items, _ := v.([]any)
		n += len(items)
	}
	return strconv.Itoa(n)
}
