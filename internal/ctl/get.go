package ctl

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

func (s *session) get() *cobra.Command {
	var (
		out       = format("table")
		namespace string
		all       bool
	)
	cmd := &cobra.Command{
		Use:   "get KIND [NAME] [-n NS | -A]",
		Short: "Show objects of the running mesh's configuration",
		Long: `Show objects of the configuration in force: those of the folder and those that were applied.

Kinds, by any of their names:
` + kindHelp(),
		Example: `  malha get workloads
  malha get vs reviews -o yaml
  malha get ap -A`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return s.completeGet(cmd.Context(), args, namespace, all)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, group, name, err := parseResource(args)
			if err != nil {
				return err
			}
			if name != "" {
				n, err := ident.ParseName(name, namespace)
				if err != nil {
					return err
				}
				namespace, name = n.Namespace, n.Name
			}
			m, err := s.mesh()
			if err != nil {
				return err
			}
			ns := namespace
			if all {
				ns = ""
			}
			objects, err := m.objects(cmd.Context(), kind.kind, ns)
			if err != nil {
				return err
			}
			if group != "" {
				objects = slices.DeleteFunc(objects, func(o local.Object) bool { return !strings.HasPrefix(o.APIVersion, group+"/") })
			}
			if name != "" {
				objects = named(objects, name)
				if len(objects) == 0 {
					return fmt.Errorf("no %s %q in namespace %q; `malha get %s -A` lists those there are", kind.kind, name, namespace, kind.plural)
				}
			}
			if out != "table" {
				return s.printObjects(out, objects, name != "")
			}
			if len(objects) == 0 {
				s.ui.say("no %s in %s", kind.plural, map[bool]string{true: "the mesh", false: "namespace " + strconv.Quote(namespace) + "; -A looks in all"}[all])
				return nil
			}
			return s.objectTable(cmd.Context(), m, kind, objects, all)
		},
	}
	addFormat(cmd, &out)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", ident.DefaultNamespace, "namespace")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "all namespaces")
	return cmd
}

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

// parseResource reads KIND, KIND NAME or KIND/NAME.
func parseResource(args []string) (k kind, group, name string, err error) {
	word, name, slash := strings.Cut(args[0], "/")
	if len(args) == 2 {
		if slash {
			return kind{}, "", "", fmt.Errorf("two names, %q and %q; write KIND NAME or KIND/NAME", name, args[1])
		}
		name = args[1]
	}
	if slash && name == "" {
		return kind{}, "", "", fmt.Errorf("%q names no object; write KIND/NAME", args[0])
	}
	// A group may follow, as kubectl has it: virtualservices.networking.istio.io, or a beginning of one.
	word, group, grouped := strings.Cut(strings.ToLower(word), ".")
	var known []string
	for _, k := range kinds() {
		if word != "" && (word == k.plural || word == k.short || word == k.name()) {
			if !grouped {
				return k, "", name, nil
			}
			groups := config.GroupsOf(k.kind)
			for _, g := range groups {
				if g == group || strings.HasPrefix(g, group+".") || strings.HasSuffix(group, "."+g) { // also with a version before it
					if k.kind == "Gateway" && g != "networking.istio.io" {
						k.columns, k.cells = []string{"STATUS"}, nil // those of the Gateway API have no servers
					}
					return k, g, name, nil
				}
			}
			return kind{}, "", "", fmt.Errorf("no %s of group %q; there are %s", k.plural, group, strings.Join(groups, ", "))
		}
		known = append(known, k.plural)
	}
	return kind{}, "", "", fmt.Errorf("unknown kind %q; there are %s", args[0], strings.Join(known, ", "))
}

func named(objects []local.Object, name string) []local.Object {
	var found []local.Object
	for _, o := range objects {
		if o.Name.Name == name {
			found = append(found, o)
		}
	}
	return found
}

// printObjects writes objects as they were written: a lone one as itself, several as a List.
func (s *session) printObjects(out format, objects []local.Object, one bool) error {
	items := make([]any, 0, len(objects))
	for _, o := range objects {
		var v any
		if err := yaml.Unmarshal([]byte(o.YAML), &v); err != nil {
			return fmt.Errorf("%s %s cannot be shown: %w", o.Kind, o.Name, err)
		}
		items = append(items, v)
	}
	if one && len(objects) == 1 {
		if out == "yaml" {
			_, err := fmt.Fprint(s.ui.out, objects[0].YAML)
			return err
		}
		return out.encode(s.ui.out, items[0])
	}
	return out.encode(s.ui.out, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
}

func (s *session) objectTable(ctx context.Context, m *client, k kind, objects []local.Object, all bool) error {
	var st *local.Status
	if k.cells == nil {
		var err error
		if st, err = m.status(ctx); err != nil {
			return err
		}
	}
	if k.kind == "Workload" {
		k.columns = append(k.columns, "PROXY", "HEALTH", "RESTARTS")
	}
	t := &table{}
	header := append([]string{"NAME"}, k.columns...)
	if all {
		header = append([]string{"NAMESPACE"}, header...)
	}
	t.header(append(header, "FROM")...)
	for _, o := range objects {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(o.YAML), &v); err != nil {
			return fmt.Errorf("%s %s cannot be shown: %w", o.Kind, o.Name, err)
		}
		spec, _ := v["spec"].(map[string]any)
		var row []cell
		if all {
			row = append(row, plain(o.Name.Namespace))
		}
		row = append(row, plain(o.Name.Name))
		switch {
		case k.cells != nil:
			for _, c := range k.cells(spec) {
				row = append(row, plain(dash(c)))
			}
		case k.kind == "Workload":
			row = append(row, workloadCells(st, o, spec)...)
		default:
			row = append(row, plain(dash(statusOf(st, o))))
		}
		from := shortPath(o.Origin.Place())
		if o.Applied {
			from = "applied"
		}
		t.row(append(row, plain(from))...)
	}
	t.write(s.ui.out, s.ui.outColor)
	return nil
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

func (s *session) completeGet(ctx context.Context, args []string, namespace string, all bool) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	if len(args) == 0 {
		var names []string
		for _, k := range kinds() {
			names = append(names, k.plural)
		}
		return names, none
	}
	k, _, _, err := parseResource(args[:1])
	if err != nil || len(args) > 1 {
		return nil, none
	}
	m, err := s.mesh()
	if err != nil {
		return nil, none
	}
	if all {
		namespace = ""
	}
	objects, err := m.objects(ctx, k.kind, namespace)
	if err != nil {
		return nil, none
	}
	var names []string
	for _, o := range objects {
		names = append(names, o.Name.Name)
	}
	return names, none
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
