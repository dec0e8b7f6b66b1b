package control

import (
	"reflect"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// difference returns the Delta that leads from what is wanted now to a configuration. It returns false when there is none: more is
// another than a Delta can say, or one name stands for several parts.
func (d *desired) difference(next *model.Config) (*model.Delta, bool) {
	if d.config == nil || !sameRest(d.config, next) {
		return nil, false
	}
	var delta model.Delta
	ok := parts(d.config.Routings, next.Routings, d.routings, routingName, &delta.Routings, &delta.Unrouted) &&
		parts(d.config.Endpoints, next.Endpoints, d.groups, func(g *model.EndpointGroup) ident.Name { return g.Name }, &delta.Groups, &delta.Ungrouped) &&
		parts(d.config.Workloads, next.Workloads, d.workloads, func(w *model.Workload) ident.Name { return w.Name }, &delta.Workloads, &delta.Ended)
	return &delta, ok
}

func routingName(r *model.Routing) model.RoutingName {
	return model.RoutingName{Kind: r.Origin.Kind, Name: r.Name}
}

// sameRest compares what no Delta can change. Statuses change nothing but what is told.
func sameRest(a, b *model.Config) bool {
	x, y := *a, *b
	for _, c := range []*model.Config{&x, &y} {
		c.Routings, c.Endpoints, c.Workloads, c.Statuses = nil, nil, nil, nil
	}
	return reflect.DeepEqual(x, y)
}

// parts adds what is new or another to changed, and what is gone to gone. What is wanted now is before, changed by since, in which nil is
// gone. Their order means nothing: a configuration has them by name. It returns false when a name stands for several values.
func parts[K comparable, T any](before, next []T, since map[K]*T, name func(*T) K, changed *[]T, gone *[]K) bool {
	had := make(map[K]*T, len(before))
	for i := range before {
		had[name(&before[i])] = &before[i]
	}
	if len(had) != len(before) {
		return false
	}
	for k, v := range since {
		if v == nil {
			delete(had, k)
		} else {
			had[k] = v
		}
	}
	seen := make(map[K]bool, len(next))
	for i := range next {
		k := name(&next[i])
		if seen[k] {
			return false
		}
		seen[k] = true
		if old := had[k]; old == nil || !reflect.DeepEqual(old, &next[i]) {
			*changed = append(*changed, next[i])
		}
	}
	for k := range had {
		if !seen[k] {
			*gone = append(*gone, k)
		}
	}
	return true
}
