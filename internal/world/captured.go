package world

import (
	"slices"

	"github.com/malha-mesh/malha/internal/model"
)

// appAt returns where the program of an instance listens for a port; "" for one that it does not have. Where traffic is
// captured that is the workload's own address, as for everybody else: 0 is for wherever a connection was going.
func appAt(in *model.Instance, port int) string {
	if in.Captured != nil && port != 0 {
		return joinPort(in.Captured.Address, port)
	}
	return in.App[port]
}

// dialed returns where others reach a port that the sidecar of an instance serves.
func dialed(in *model.Instance, p *model.InboundPort) string {
	if in != nil && in.Captured != nil {
		return joinPort(in.Captured.Address, p.Port)
	}
	return p.Bind
}

// ownHost returns the name of a member below that of its headless service; "" when it has none. Source: Kubernetes, "DNS for
// Services and Pods": a Pod has one below the service that its subdomain names.
func ownHost(s *model.Service, wl *model.Workload, in *model.Instance) string {
	switch {
	case in == nil || in.Captured == nil:
		return wl.Name.Name + "." + s.Host
	case in.Captured.Hostname != "" && in.Captured.Subdomain == s.Name.Name:
		return in.Captured.Hostname + "." + s.Host
	}
	return ""
}

// undeclared returns the ports of a captured workload that need a listener though it does not declare them: those that services
// lead to and those that a policy has something of their own for, unless a Sidecar says which ports there are. 0, for all
// others, is always among them: what nobody declares is still guarded by what guards the workload.
func (w *World) undeclared(wl *model.Workload, leads map[int]lead, policy *model.SidecarPolicy) []int {
	out := []int{0}
	if policy != nil && policy.Ingress != nil {
		return out
	}
	for port := range leads {
		out = append(out, port)
	}
	for _, p := range w.namespace(wl.Name.Namespace).peerAuth {
		if selects(p.Selector, wl.Labels) {
			for port := range p.Ports {
				out = append(out, port)
			}
		}
	}
	for _, l := range w.namespace(wl.Name.Namespace).limits {
		if l.Port != 0 && model.HasLabels(wl.Labels, l.Selector) {
			out = append(out, l.Port)
		}
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(port int) bool {
		return slices.ContainsFunc(wl.Ports, func(p model.WorkloadPort) bool { return p.Port == port })
	})
}
