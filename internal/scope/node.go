package scope

import (
	"github.com/malha-mesh/malha/internal/model"
)

// labelNode is the node that a workload or endpoint is on (Kubernetes, well-known labels).
const labelNode = "kubernetes.io/hostname"

// near returns the members that a client may call: those of its own node only, where the Service says so. Of a client on no
// node, as on one machine, all are. Source: Kubernetes, "Service Internal Traffic Policy".
func (c *client) near(s *model.Service, all []*model.Member) []*model.Member {
	node := c.labels[labelNode]
	if !s.NodeLocal || node == "" {
		return all
	}
	var out []*model.Member
	for _, m := range all {
		if m.Labels[labelNode] == node {
			out = append(out, m)
		}
	}
	return out
}
