package upstream

import (
	"cmp"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
)

// Status is what a Set looks like at one moment, for the admin port and metrics.
type Status struct {
	Clusters []ClusterStatus `json:"clusters"` // sorted by name, passthrough clusters by host
}

// ClusterStatus is one cluster. Fields whose name ends in Total only grow.
type ClusterStatus struct {
	Name string `json:"name"`
	Host string `json:"host,omitempty"`
	Port int    `json:"port,omitempty"`

	Requests    int64 `json:"requests"` // in flight
	Pending     int64 `json:"pending"`  // of these, waiting for a connection
	Retries     int64 `json:"retries"`  // of these, retries
	Connections int64 `json:"connections"`

	RequestsTotal      uint64 `json:"requestsTotal"`
	RetriesTotal       uint64 `json:"retriesTotal"`
	OverflowTotal      uint64 `json:"overflowTotal"` // refused by a circuit limit
	ConnectionsTotal   uint64 `json:"connectionsTotal"`
	ConnectFailedTotal uint64 `json:"connectFailedTotal"`
	EjectionsTotal     uint64 `json:"ejectionsTotal"`

	// Panic is set when health is ignored because too few endpoints are healthy.
	Panic     bool             `json:"panic,omitempty"`
	Unusable  int              `json:"unusable,omitempty"` // endpoints that mutual TLS rules out: they have no identity
	Endpoints []EndpointStatus `json:"endpoints,omitempty"`
}

// EndpointStatus is one endpoint of a cluster.
type EndpointStatus struct {
	Address     string              `json:"address"`
	Identity    string              `json:"identity,omitempty"` // SPIFFE id
	TLS         bool                `json:"tls,omitempty"`
	Weight      uint32              `json:"weight"`
	Workload    plan.WorkloadLabels `json:"workload,omitzero"`
	Requests    int64               `json:"requests"` // in flight
	Connections int64               `json:"connections"`
	Idle        int                 `json:"idle"` // connections without a request
	Ejected     bool                `json:"ejected,omitempty"`
	Ejections   uint32              `json:"ejections,omitempty"` // that decide how long the next one is
	Until       time.Time           `json:"until,omitzero"`      // when an ejection ends, or the sweep after it
}

// Snapshot returns what the Set looks like now.
func (s *Set) Snapshot() *Status {
	out := &Status{Clusters: []ClusterStatus{}}
	s.each(func(c *Cluster) { out.Clusters = append(out.Clusters, c.status()) })
	slices.SortFunc(out.Clusters, func(a, b ClusterStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	return out
}

func (c *Cluster) status() ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.state.Load()
	n := &c.counted
	out := ClusterStatus{
		Name: c.name, Host: st.plan.Host, Port: st.plan.Port,
		Requests: n.requests.Load(), Pending: n.pending.Load(), Retries: n.retries.Load(), Connections: n.connections.Load(),
		RequestsTotal: n.requestsTotal.Load(), RetriesTotal: n.retriesTotal.Load(), OverflowTotal: n.overflow.Load(),
		ConnectionsTotal: n.connectionsTotal.Load(), ConnectFailedTotal: n.connectFailed.Load(), EjectionsTotal: n.ejections.Load(),
		Panic: st.picker.Panic(), Unusable: len(st.planned) - len(st.endpoints),
	}
	for _, e := range st.endpoints {
		p := e.Plan()
		es := EndpointStatus{
			Address: p.Address, Identity: p.Identity.URI(), TLS: e.key.tls, Weight: max(p.Weight, 1), Workload: p.Workload,
			Requests: e.inFlight.Load(), Connections: e.connections.Load(), Idle: e.h1.idleCount() + e.h2.idleCount(),
			Ejected: e.ejected.Load(), Ejections: e.ejections,
		}
		if es.Ejected && st.plan.Outlier != nil {
			es.Until = e.ejectedAt.Add(ejection(st.plan.Outlier, e.ejections))
		}
		out.Endpoints = append(out.Endpoints, es)
	}
	return out
}

func (p *h1Pool) idleCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

func (p *h2Pool) idleCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, hc := range p.conns {
		if hc.streams == 0 {
			n++
		}
	}
	return n
}
