package kube

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// servedKind is a kind that config translates, or knows by name, and that the API server serves.
type servedKind struct {
	kind     string
	resource schema.GroupVersionResource
}

// kindsFound is what an API server serves.
type kindsFound struct {
	kinds       []servedKind
	broken      map[string]bool // groups that could not be asked about: nothing about them is new
	diagnostics []model.Diagnostic
}

// lag is how much later than its CRD a kind can turn up.
const lag = 2 * time.Second

// discover asks which kinds there are: at once, whenever a CRD changes, and now and then.
func (s *Source) discover(ctx context.Context, out chan<- *kindsFound) {
	wait := time.NewTimer(0)
	defer wait.Stop()
	late := false // a CRD has changed: ask once more
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.again:
			late = true
			wait.Reset(100 * time.Millisecond)
			continue
		case <-wait.C:
		}
		next := s.o.Discover
		found, err := s.ask(ctx)
		if err != nil {
			s.log.Warn("cannot ask the API server which kinds it serves; asking again", "error", err)
			next = min(next, 5*time.Second)
		} else {
			select {
			case out <- found:
			case <-ctx.Done():
				return
			}
		}
		if late {
			late, next = false, min(next, lag)
		}
		wait.Reset(next)
	}
}

// ownKinds are followed always, or by name only, or are nothing to an API server's mesh.
var ownKinds = map[schema.GroupKind]bool{
	{Kind: "Service"}: true, {Kind: "Namespace"}: true, {Kind: "Secret"}: true, {Kind: "ConfigMap"}: true, {Kind: "Endpoints"}: true,
	{Group: "discovery.k8s.io", Kind: "EndpointSlice"}: true, {Group: "networking.k8s.io", Kind: "Ingress"}: true,
	{Group: "networking.k8s.io", Kind: "IngressClass"}: true,
}

func (s *Source) ask(ctx context.Context) (*kindsFound, error) {
	_, lists, err := s.o.Client.Discovery().ServerGroupsAndResources()
	out := &kindsFound{broken: map[string]bool{}}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if groups, partly := discovery.GroupDiscoveryFailedErrorGroups(err); partly {
		for gv := range groups {
			out.broken[gv.Group] = true
		}
	} else if err != nil {
		return nil, err
	}
	served := map[schema.GroupKind]map[string]string{} // version → resource
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for i := range l.APIResources {
			r := &l.APIResources[i]
			if strings.Contains(r.Name, "/") || !watchable(r) {
				continue
			}
			k := schema.GroupKind{Group: gv.Group, Kind: r.Kind}
			if served[k] == nil {
				served[k] = map[string]string{}
			}
			served[k][gv.Version] = r.Name
		}
	}
	for _, k := range config.Kinds() {
		versions := served[schema.GroupKind{Group: k.Group, Kind: k.Kind}]
		if len(versions) == 0 || ownKinds[schema.GroupKind{Group: k.Group, Kind: k.Kind}] {
			continue
		}
		i := slices.IndexFunc(k.Versions, func(v string) bool { return versions[v] != "" })
		if i < 0 {
			out.diagnostics = append(out.diagnostics, model.Diagnostic{
				Code: CodeVersion, Severity: model.Error,
				Origin:  ident.Origin{File: manifest.Kubernetes, Kind: k.Kind},
				Message: "the API server serves " + k.Kind + " of " + k.Group + " in versions that Malha does not know: nothing of it is in force",
				Hint:    "install CRDs that serve one of: " + strings.Join(k.Versions, ", "),
			})
			continue
		}
		out.kinds = append(out.kinds, servedKind{k.Kind, schema.GroupVersionResource{Group: k.Group, Version: k.Versions[i], Resource: versions[k.Versions[i]]}})
	}
	// Objects of kinds that are known by name only are followed for what is to be said of them: that they are not in force.
	notYet := config.NotYet()
	for _, group := range slices.Sorted(maps.Keys(notYet)) {
		for _, kind := range notYet[group] {
			versions := served[schema.GroupKind{Group: group, Kind: kind}]
			if len(versions) == 0 {
				continue
			}
			newest := slices.MaxFunc(slices.Collect(maps.Keys(versions)), version.CompareKubeAwareVersionStrings)
			out.kinds = append(out.kinds, servedKind{kind, schema.GroupVersionResource{Group: group, Version: newest, Resource: versions[newest]}})
		}
	}
	return out, nil
}

func watchable(r *metav1.APIResource) bool {
	return slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "watch")
}

// follow watches what was found, and no longer what is gone.
func (w *watchers) follow(found *kindsFound) {
	first := w.kinds == nil
	gone := map[string]bool{}
	if !first {
		for _, k := range w.kinds.kinds {
			if !found.broken[k.resource.Group] {
				gone[k.resource.String()] = true
			} else if !slices.Contains(found.kinds, k) {
				found.kinds = append(found.kinds, k) // of a group that could not be asked about
			}
		}
	}
	for _, k := range found.kinds {
		delete(gone, k.resource.String())
	}
	for key := range gone {
		if w.running[key] != nil {
			w.source.log.Info("a kind of objects is gone, and what was written in it no longer in force", "kind", key)
			w.stop(key)
		}
	}
	for _, k := range found.kinds {
		if w.running[k.resource.String()] == nil {
			if !first {
				w.source.log.Info("a kind of objects is new", "kind", k.kind, "version", k.resource.GroupVersion().String())
			}
			w.start(w.source.dynamicResource(k))
		}
	}
	if first || !slices.Equal(w.kinds.diagnostics, found.diagnostics) {
		w.source.state.touch(func(st *state) { st.config = true })
	}
	w.kinds = found
}
