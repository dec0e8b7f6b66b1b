package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// resource is a kind that somebody names, and which objects of it.
type resource struct {
	kind
	group string   // "" any
	names []string // NAME or NAMESPACE/NAME; none: all of them
}

// parseResources reads what kubectl's users write: KIND[,KIND] [NAME…], all, or KIND/NAME….
func parseResources(args []string) ([]resource, error) {
	var out []resource
	if !strings.Contains(args[0], "/") {
		if strings.EqualFold(args[0], "all") {
			if len(args) > 1 {
				return nil, fmt.Errorf("all is no kind that %q could be of; write KIND NAME", args[1])
			}
			for _, k := range kinds() {
				out = append(out, resource{kind: k})
			}
			return out, nil
		}
		for word := range strings.SplitSeq(args[0], ",") {
			r, err := parseKind(word)
			if err != nil {
				return nil, err
			}
			r.names = args[1:]
			out = append(out, r)
		}
		return out, nil
	}
	for _, arg := range args {
		word, name, ok := strings.Cut(arg, "/")
		switch {
		case !ok:
			return nil, fmt.Errorf("%q has no kind; write KIND/NAME for each, or KIND NAME NAME", arg)
		case name == "":
			return nil, fmt.Errorf("%q names no object; write KIND/NAME", arg)
		}
		r, err := parseKind(word)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(out, func(have resource) bool { return have.kind.kind == r.kind.kind && have.group == r.group }); i >= 0 {
			out[i].names = append(out[i].names, name)
			continue
		}
		r.names = []string{name}
		out = append(out, r)
	}
	return out, nil
}

// parseKind reads a kind by any of its names. A group may follow, as kubectl has it: virtualservices.networking.istio.io, or a
// beginning of one.
func parseKind(arg string) (resource, error) {
	word, group, grouped := strings.Cut(strings.ToLower(arg), ".")
	var known []string
	for _, k := range kinds() {
		if word != "" && (word == k.plural || word == k.short || word == k.name()) {
			if !grouped {
				return resource{kind: k}, nil
			}
			groups := config.GroupsOf(k.kind)
			for _, g := range groups {
				if g == group || strings.HasPrefix(g, group+".") || strings.HasSuffix(group, "."+g) { // also with a version before it
					if k.kind == "Gateway" && g != "networking.istio.io" {
						k.columns, k.cells = []string{"STATUS"}, nil // those of the Gateway API have no servers
					}
					return resource{kind: k, group: g}, nil
				}
			}
			return resource{}, fmt.Errorf("no %s of group %q; there are %s", k.plural, group, strings.Join(groups, ", "))
		}
		known = append(known, k.plural, k.name())
	}
	switch word {
	case "pod", "pods", "po", "deployment", "deployments", "deploy", "statefulset", "statefulsets", "sts", "replicaset", "replicasets", "rs", "daemonset", "daemonsets", "ds":
		return resource{}, fmt.Errorf("there are no %s in a mesh on one machine; what runs is `malha get workloads`", word)
	case "node", "nodes", "no", "proxy", "proxies":
		return resource{}, fmt.Errorf("%s are no objects; `malha status` shows each proxy", word)
	case "serviceaccount", "serviceaccounts", "sa":
		return resource{}, errors.New("a service account exists by being named; the identity of each workload is in `malha get workloads`")
	case "test", "tests":
		return resource{}, errors.New("a Test is not part of the mesh; run it with `malha test FILE`")
	}
	return resource{}, fmt.Errorf("unknown kind %q%s; `malha get --help` lists them", arg, didYouMean(word, known))
}

// didYouMean returns "; did you mean X?", or "" when nothing is near. A word that others only continue, as reviews does
// reviews-v1, is near to them.
func didYouMean(word string, candidates []string) string {
	near := ident.Nearest(word, candidates)
	if near == "" && word != "" {
		var longer []string
		for _, c := range candidates {
			if strings.HasPrefix(c, word+"-") {
				longer = append(longer, c)
			}
		}
		slices.Sort(longer)
		if n := len(longer); n > 3 {
			longer = append(longer[:3], "…")
		}
		near = strings.Join(longer, ", ")
	}
	if near == "" {
		return ""
	}
	return "; did you mean " + near + "?"
}

// pick returns the objects that a resource names, and an error for each name that there is not.
func (r *resource) pick(objects []local.Object, namespace string, all bool) ([]local.Object, []error) {
	objects = slices.DeleteFunc(slices.Clone(objects), func(o local.Object) bool {
		return o.Kind != r.kind.kind || r.group != "" && !strings.HasPrefix(o.APIVersion, r.group+"/")
	})
	all = all || model.ClusterScoped(r.kind.kind)
	if len(r.names) == 0 {
		return slices.DeleteFunc(objects, func(o local.Object) bool { return !all && o.Name.Namespace != namespace }), nil
	}
	var found []local.Object
	var errs []error
	for _, arg := range r.names {
		want, err := ident.ParseName(arg, namespace)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		anywhere := all && want.Name == arg
		before := len(found)
		var names, elsewhere []string
		for _, o := range objects {
			switch {
			case o.Name == want, anywhere && o.Name.Name == arg:
				found = append(found, o)
			case o.Name.Name == want.Name:
				elsewhere = append(elsewhere, o.Name.Namespace)
			case anywhere || o.Name.Namespace == want.Namespace:
				names = append(names, o.Name.Name)
			}
		}
		if len(found) > before {
			continue
		}
		where := fmt.Sprintf(" in namespace %q", want.Namespace)
		if all {
			where = ""
		}
		next := didYouMean(want.Name, names)
		switch {
		case len(elsewhere) > 0:
			next = fmt.Sprintf("; there is one in %s: write -n %s", strings.Join(elsewhere, " and in "), elsewhere[0])
		case next == "":
			next = fmt.Sprintf("; `malha get %s -A` lists those there are", r.plural)
		}
		errs = append(errs, fmt.Errorf("no %s %q%s%s", r.kind.kind, want.Name, where, next))
	}
	return found, errs
}

// find returns the mesh's objects that resources name, of a namespace or of all, and an error for each name that there is not.
func (c *client) find(ctx context.Context, resources []resource, namespace string, all bool) (found []local.Object, missing []error, err error) {
	kind := "" // of all
	if len(resources) == 1 {
		kind = resources[0].kind.kind
	}
	objects, err := c.objects(ctx, kind, "")
	if err != nil {
		return nil, nil, err
	}
	for i := range resources {
		of, errs := resources[i].pick(objects, namespace, all)
		found, missing = append(found, of...), append(missing, errs...)
	}
	return found, missing, nil
}

// completeResources offers kinds, then names of objects of the running mesh; with applied only what `malha delete` could take back.
func (s *session) completeResources(cmd *cobra.Command, args []string, prefix string, applied bool) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	m, err := s.mesh()
	if err != nil {
		return nil, none
	}
	namespace, _ := cmd.Flags().GetString("namespace")
	all, _ := cmd.Flags().GetBool("all-namespaces")
	var words []string
	switch word, _, slash := strings.Cut(prefix, "/"); {
	case slash: // KIND/NAME, as often as one likes
		words = m.namesOf(cmd.Context(), word, namespace, all, applied)
		for i := range words {
			words[i] = word + "/" + words[i]
		}
	case len(args) == 0:
		done := prefix[:strings.LastIndex(prefix, ",")+1] // KIND,KIND
		for _, k := range kinds() {
			words = append(words, done+k.plural+"\t"+k.short)
		}
		words = append(words, "all")
	case !strings.Contains(args[0], "/"):
		words = m.namesOf(cmd.Context(), args[0], namespace, all, applied)
	}
	return slices.DeleteFunc(words, func(w string) bool {
		return !strings.HasPrefix(w, prefix) || slices.Contains(args, w)
	}), none
}

// namesOf returns the names of a kind's objects, for completion: nothing on any mistake.
func (c *client) namesOf(ctx context.Context, word, namespace string, all, applied bool) []string {
	resources, err := parseResources([]string{word})
	if err != nil {
		return nil
	}
	found, _, err := c.find(ctx, resources, namespace, all)
	if err != nil {
		return nil
	}
	var names []string
	for _, o := range found {
		if o.Applied || !applied {
			names = append(names, o.Name.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
