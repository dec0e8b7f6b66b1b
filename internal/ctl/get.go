package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// getFlags are the flags of `malha get`.
type getFlags struct {
	out       objectFormat
	namespace string
	all       bool
	selector  string
	noHeaders bool
}

func (s *session) get() *cobra.Command {
	f := &getFlags{out: objectFormat{choice{"table", []string{"table", "wide", "name", "yaml", "json"}}}}
	var watch bool
	cmd := &cobra.Command{
		Use:   "get KIND[,KIND…]|all [NAME…] [-n NS | -A]",
		Short: "Show objects of the running mesh's configuration",
		Long: `Show objects of the configuration in force: those of the folder and those that were applied. What -o yaml writes can be
applied again.

Kinds, by any of their names, also with a group (gateways.networking.istio.io); all is every kind that there is an object of:
` + kindHelp(),
		Example: `  malha get workloads
  malha get vs,dr
  malha get all -A
  malha get svc -l app=reviews
  malha get vs bookinfo -o yaml
  malha get vs/bookinfo dr/reviews -o json`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return s.completeResources(cmd, args, prefix, false)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if watch {
				return errors.New("-w is not offered; ask again and again with `watch -n 1 malha get …`, and follow what programs say with `malha logs -f`")
			}
			resources, err := parseResources(args)
			if err != nil {
				return err
			}
			return s.getObjects(cmd.Context(), resources, f)
		},
	}
	fl := cmd.Flags()
	fl.VarP(&f.out, "output", "o", "how to print it")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(f.out.words, cobra.ShellCompDirectiveNoFileComp))
	s.addNamespace(cmd, &f.namespace, "`NAMESPACE` to look in")
	fl.BoolVarP(&f.all, "all-namespaces", "A", false, "look in all namespaces")
	fl.StringVarP(&f.selector, "selector", "l", "", "only objects whose `LABELS` match: app=reviews,version!=v1")
	fl.BoolVar(&f.noHeaders, "no-headers", false, "tables without their first line")
	fl.BoolVarP(&watch, "watch", "w", false, "")
	_ = fl.MarkHidden("watch")
	return cmd
}

// addNamespace adds -n, whose completion is the namespaces that there are objects in.
func (s *session) addNamespace(cmd *cobra.Command, namespace *string, usage string) {
	cmd.Flags().StringVarP(namespace, "namespace", "n", ident.DefaultNamespace, usage)
	_ = cmd.RegisterFlagCompletionFunc("namespace", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		var names []string
		if m, err := s.mesh(); err == nil {
			objects, _ := m.objects(cmd.Context(), "", "") // nothing to offer without a mesh
			for _, o := range objects {
				name := o.Name.Namespace
				if o.Kind == "Namespace" {
					name = o.Name.Name
				}
				if strings.HasPrefix(name, prefix) && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}

// objectFormat is the value of -o where objects are printed.
type objectFormat struct{ choice }

// Set checks the value.
func (f *objectFormat) Set(text string) error {
	err := f.choice.Set(text)
	for _, prefix := range []string{"jsonpath", "go-template", "template", "custom-columns"} {
		if err != nil && strings.HasPrefix(text, prefix) {
			return fmt.Errorf("%w; for parts of objects pipe -o json into jq", err)
		}
	}
	return err
}

// getObjects prints what is found, and then fails if something was not.
func (s *session) getObjects(ctx context.Context, resources []resource, f *getFlags) error {
	selector, err := labels.Parse(f.selector)
	if err != nil {
		return fmt.Errorf("-l %q is no selector: %w; write app=reviews or app!=reviews", f.selector, err)
	}
	named := len(resources[0].names) > 0
	if named && f.selector != "" {
		return errors.New("names and -l cannot go together; leave one of them out")
	}
	m, err := s.mesh()
	if err != nil {
		return err
	}
	found, missing, err := m.find(ctx, resources, f.namespace, f.all)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(o local.Object) bool { return !selector.Matches(labels.Set(o.Labels)) })
	switch {
	case named && len(found) == 0:
	case f.out.value == "name":
		for i := range found {
			fmt.Fprintln(s.ui.out, objectWord(&found[i], f.namespace))
		}
	case f.out.value == "yaml" || f.out.value == "json":
		err = s.printObjects(format(f.out.value), found, named && len(found) == 1 && len(missing) == 0)
	case len(found) > 0:
		err = s.objectTables(ctx, m, resources, found, f)
	default:
		s.ui.say("%s", nothing(resources, f))
	}
	if err != nil || len(missing) == 0 {
		return err
	}
	for _, e := range missing[:len(missing)-1] {
		s.ui.fail(e)
	}
	return missing[len(missing)-1]
}

// nothing says that there is nothing of what was asked for.
func nothing(resources []resource, f *getFlags) string {
	what, where := "objects", "the mesh"
	if len(resources) < len(kinds()) {
		words := make([]string, len(resources))
		for i := range resources {
			words[i] = resources[i].plural
		}
		what = strings.Join(words, " or ")
	}
	if f.selector != "" {
		what += " with the labels " + f.selector
	}
	if !f.all && !model.ClusterScoped(resources[0].kind.kind) {
		where = "namespace " + strconv.Quote(f.namespace) + "; -A looks in all"
	}
	return "no " + what + " in " + where
}

// objectWord names an object as -o name does, so that get and delete read it again: virtualservice.networking.istio.io/reviews, with
// the namespace where -n does not say it.
func objectWord(o *local.Object, namespace string) string {
	word := strings.ToLower(o.Kind)
	if group, _, ok := strings.Cut(o.APIVersion, "/"); ok {
		word += "." + group
	}
	if o.Name.Namespace != namespace && !model.ClusterScoped(o.Kind) {
		return word + "/" + o.Name.String()
	}
	return word + "/" + o.Name.Name
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
	if one {
		if out == "yaml" {
			_, err := fmt.Fprint(s.ui.out, objects[0].YAML)
			return err
		}
		return out.encode(s.ui.out, items[0])
	}
	return out.encode(s.ui.out, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
}

// objectTables prints a table for each kind. Where there may be several, names say their kind.
func (s *session) objectTables(ctx context.Context, m *client, resources []resource, objects []local.Object, f *getFlags) error {
	var st *local.Status
	if slices.ContainsFunc(resources, func(r resource) bool { return r.cells == nil }) {
		var err error
		if st, err = m.status(ctx); err != nil {
			return err
		}
	}
	first := true
	for i := range resources {
		r := &resources[i]
		of := slices.DeleteFunc(slices.Clone(objects), func(o local.Object) bool { return o.Kind != r.kind.kind })
		if len(of) == 0 {
			continue
		}
		if !first {
			fmt.Fprintln(s.ui.out)
		}
		first = false
		t, err := objectTable(st, r, of, f, len(resources) > 1)
		if err != nil {
			return err
		}
		t.write(s.ui.out, s.ui.outColor)
	}
	return nil
}

// objectTable is the table of one kind's objects.
func objectTable(st *local.Status, r *resource, objects []local.Object, f *getFlags, several bool) (*table, error) {
	t := &table{}
	columns := slices.Concat([]string{"NAME"}, r.columns, []string{"FROM"})
	if r.kind.kind == "Workload" {
		columns = slices.Insert(columns, len(columns)-1, "PROXY", "HEALTH", "RESTARTS")
	}
	spaces := f.all && !model.ClusterScoped(r.kind.kind)
	if spaces {
		columns = slices.Insert(columns, 0, "NAMESPACE")
	}
	if f.out.value == "wide" {
		columns = append(columns, "APIVERSION", "LABELS")
	}
	if !f.noHeaders {
		t.header(columns...)
	}
	for _, o := range objects {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(o.YAML), &v); err != nil {
			return nil, fmt.Errorf("%s %s cannot be shown: %w", o.Kind, o.Name, err)
		}
		spec, _ := v["spec"].(map[string]any)
		var row []cell
		if spaces {
			row = append(row, plain(o.Name.Namespace))
		}
		name := o.Name.Name
		if several {
			name = r.name() + "/" + name
		}
		row = append(row, plain(name))
		switch {
		case r.cells != nil:
			for _, c := range r.cells(spec) {
				row = append(row, plain(dash(c)))
			}
		case r.kind.kind == "Workload":
			row = append(row, workloadCells(st, o, spec)...)
		default:
			row = append(row, plain(dash(statusOf(st, o))))
		}
		from := shortPath(o.Origin.Place())
		if o.Applied {
			from = "applied"
		}
		row = append(row, plain(from))
		if f.out.value == "wide" {
			row = append(row, plain(o.APIVersion), plain(dash(labels.Set(o.Labels).String())))
		}
		t.row(row...)
	}
	return t, nil
}
