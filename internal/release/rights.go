package release

import (
	"context"
	"fmt"

	"github.com/malha-mesh/malha/internal/cluster"
)

// Missing asks which of these verbs the user of a cluster may not do with the kinds of a release, as "create deployments.apps in
// malha-system".
func Missing(ctx context.Context, c *cluster.Cluster, r *Release, verbs ...string) ([]string, error) {
	var missing []string
	asked := map[string]bool{}
	for i := range r.Objects {
		o := &r.Objects[i]
		gvk := o.GroupVersionKind()
		m, err := c.Mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return nil, fmt.Errorf("the API server has no %s: %w; use a newer cluster", gvk.Kind, c.Explain(err))
		}
		for _, verb := range verbs {
			id := verb + " " + m.Resource.GroupResource().String()
			if ns := o.GetNamespace(); ns != "" {
				id += " in " + ns
			}
			if asked[id] {
				continue
			}
			asked[id] = true
			ok, err := c.May(ctx, verb, gvk.Group, m.Resource.Resource, o.GetNamespace())
			if err != nil {
				return nil, err
			}
			if !ok {
				missing = append(missing, id)
			}
		}
	}
	return missing, nil
}
