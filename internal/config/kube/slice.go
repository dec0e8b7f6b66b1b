package kube

import (
	"errors"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

var errNoObject = errors.New("it is not of the kind that was asked for")

// slice is an EndpointSlice, translated, and what else its endpoints say.
type slice struct {
	service     ident.Name
	family      string // IPv4 or IPv6
	group       model.EndpointGroup
	refers      []reference // of the endpoints of group, one for each
	diagnostics []model.Diagnostic
}

// reference is the pod behind an endpoint, and where it is; zero: it is not known.
type reference struct {
	pod  ident.Name
	ip   string // of an endpoint that names no pod, for whoever wrote it by hand; "" when it names one
	node string
}

// readSlice returns a *slice; nil for one of no Service.
func readSlice(o metav1.Object) (any, error) {
	in, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, errNoObject
	}
	service := in.Labels[discoveryv1.LabelServiceName]
	if service == "" || in.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, nil // nobody's, for Kubernetes too
	}
	out := &slice{service: ident.Name{Namespace: in.Namespace, Name: service}, family: string(in.AddressType)}
	lean := in.DeepCopy()
	for i := range lean.Endpoints {
		e := &lean.Endpoints[i]
		var r reference
		if t := e.TargetRef; t != nil && t.Kind == "Pod" {
			r.pod = ident.Name{Namespace: t.Namespace, Name: t.Name}
			if r.pod.Namespace == "" {
				r.pod.Namespace = in.Namespace
			}
		} else if len(e.Addresses) > 0 {
			r.ip = e.Addresses[0]
		}
		if e.NodeName != nil {
			r.node = *e.NodeName
		}
		out.refers = append(out.refers, r)
		e.TargetRef, e.Hints, e.DeprecatedTopology = nil, nil, nil
		e.Addresses = e.Addresses[:min(1, len(e.Addresses))] // the others have no meaning (EndpointSlice, "addresses")
	}
	k, err := read("discovery.k8s.io/v1", "EndpointSlice", lean)
	if err != nil {
		return nil, err
	}
	cfg, ds := config.Translate([]config.Object{k.object})
	ds = append(ds, k.diagnostics...)
	out.diagnostics = slices.DeleteFunc(ds, func(d model.Diagnostic) bool { return d.Severity != model.Error })
	if len(cfg.Endpoints) == 1 && len(cfg.Endpoints[0].Endpoints) == len(out.refers) {
		out.group = cfg.Endpoints[0]
		out.group.Labels = nil // those of the slice say nothing about its endpoints
	} else {
		out.refers = nil
	}
	return out, nil
}

func putSlice(st *state, name ident.Name, v any) {
	if before := st.slices[name]; before != nil {
		for _, r := range before.refers {
			leave(st.refers, r.pod, name)
			leave(st.names, r.ip, name)
		}
		if len(before.diagnostics) > 0 {
			st.config = true
		}
	}
	st.dirtySlices[name] = true
	s, _ := v.(*slice)
	if s == nil {
		delete(st.slices, name)
		return
	}
	st.slices[name] = s
	for _, r := range s.refers {
		if r.ip != "" {
			enter(st.names, r.ip, name)
		} else {
			enter(st.refers, r.pod, name)
		}
	}
	if len(s.diagnostics) > 0 {
		st.config = true
	}
}

// at returns the pod with a sidecar that has an address; nil: none. An address that was given on belongs to the younger pod.
func (st *state) at(ip string) *pod {
	var out *pod
	for name := range st.ips[ip] {
		if p := st.pods[name]; out == nil || p.created.After(out.created) || p.created.Equal(out.created) && out.name.Compare(name) < 0 {
			out = p
		}
	}
	return out
}

// group returns the endpoints of a slice that are not workloads of the mesh, whose pods say more; false when there are none.
// Those that a Service without a selector leads to stay, whoever they are.
func (st *state) group(s *slice) (model.EndpointGroup, bool) {
	if s == nil || s.refers == nil {
		return model.EndpointGroup{}, false
	}
	service := st.services[s.service]
	if service != nil && service.family != "" && string(service.family) != s.family {
		return model.EndpointGroup{}, false // the same endpoints once more
	}
	selected := service == nil || len(service.selector) > 0
	out := s.group
	out.Endpoints = nil
	for i := range s.group.Endpoints {
		e, r := s.group.Endpoints[i], s.refers[i]
		p, stray := st.pods[r.pod], false
		if r.ip != "" {
			p = st.at(r.ip)
			// One that the selector does not choose is no workload of the Service, so nothing else leads there.
			stray = p != nil && service != nil && !model.HasLabels(p.labels, service.selector)
		}
		if p != nil && p.role == sidecar {
			if selected && !stray {
				continue
			}
			e.Identity = st.identity(p)
		}
		if p != nil {
			e.Labels = p.labels
		}
		if r.node != "" {
			n := st.where(r.node)
			e.Node = n.hostname
			if n.locality != "" {
				e.Locality = n.locality
			}
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return out, len(out.Endpoints) > 0
}
