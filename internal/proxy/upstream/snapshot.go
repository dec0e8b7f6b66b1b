package upstream

import (
	"cmp"
	"sort"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/balance"
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
	ChecksTotal        uint64 `json:"checksTotal,omitempty"` // active health checks
	ChecksFailedTotal  uint64 `json:"checksFailedTotal,omitempty"`

	// Panic is set when health is ignored because too few endpoints are healthy.
	Panic    bool `json:"panic,omitempty"`
	Unusable int  `json:"unusable,omitempty"` // endpoints that mutual TLS rules out: they have no identity
	// Localities is how the traffic is divided among endpoints by how near they are, nearest first; only where it is divided.
	Localities []LocalityStatus `json:"localities,omitempty"`
	Endpoints  []EndpointStatus `json:"endpoints,omitempty"`
}

// LocalityStatus is the endpoints of a cluster that are as near as each other.
type LocalityStatus struct {
	Near      string `json:"near"`
	Endpoints int    `json:"endpoints"`
	Healthy   int    `json:"healthy"`
	Percent   uint32 `json:"percent"` // of the traffic
	Panic     bool   `json:"panic,omitempty"`
}

// EndpointStatus is one endpoint of a cluster.
type EndpointStatus struct {
	Address     string              `json:"address"`
	Name        string              `json:"name,omitempty"`     // that the address was found by
	Identity    string              `json:"identity,omitempty"` // SPIFFE id
	TLS         bool                `json:"tls,omitempty"`
	Weight      uint32              `json:"weight"`
	Warm        float64             `json:"warm,omitempty"` // share of its weight that a new endpoint has by now
	Workload    plan.WorkloadLabels `json:"workload,omitzero"`
	Locality    string              `json:"locality,omitempty"`
	Near        string              `json:"near,omitempty"` // how near it is
	Requests    int64               `json:"requests"`       // in flight
	Connections int64               `json:"connections"`
	Idle        int                 `json:"idle"`              // connections without a request
	Latency     float64             `json:"latency,omitempty"` // seconds, with peak-EWMA
	Ejected     bool                `json:"ejected,omitempty"` // by outlier detection
	Sick        bool                `json:"sick,omitempty"`    // by active health checks
	Probing     bool                `json:"probing,omitempty"` // one request decides whether it is let back
	Why         string              `json:"why,omitempty"`
	Ejections   uint32              `json:"ejections,omitempty"` // that decide how long the next one is
	Until       time.Time           `json:"until,omitzero"`      // when an ejection ends, or the sweep after it
}

// Snapshot returns what the Set looks like now.
func (s *Set) Snapshot() *Status {
	out := &Status{Clusters: []ClusterStatus{}}
	s.each(func(c *Cluster) { out.Clusters = append(out.Clusters, c.status()) })
	sort.Slice(out.Clusters, func(i, j int) bool {
		a, b := &out.Clusters[i], &out.Clusters[j]
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port)) < 0
	})
	return out
}

func (c *Cluster) status() ClusterStatus {
	if k := c.running(); k != nil {
		return k.status()
	}
	// It was never used: what the plan says is all there is.
	c.mu.Lock()
	g := c.given
	c.mu.Unlock()
	cluster, endpoints := g.open()
	out := ClusterStatus{Name: cluster.Name, Host: cluster.Host, Port: cluster.Port}
	near := balance.NewMap(cluster.Locality, c.set.here())
	for i := range endpoints {
		p := &endpoints[i]
		k, ok := keyOf(cluster, p)
		if !ok {
			out.Unusable++
			continue
		}
		out.Endpoints = append(out.Endpoints, endpointStatus(p, &k, &near))
	}
	return out
}

func endpointStatus(p *plan.Endpoint, k *key, near *balance.Map) EndpointStatus {
	return EndpointStatus{
		Address: k.address, Name: k.name, Identity: p.Identity.URI(), TLS: k.tls, Weight: max(p.Weight, 1), Workload: p.Workload,
		Locality: p.Locality, Near: near.Says(near.Group(p)),
	}
}

func (c *core) status() ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.state.Load()
	n := &c.counted
	out := ClusterStatus{
		Name: c.name, Host: st.plan.Host, Port: st.plan.Port,
		Requests: n.requests.Load(), Pending: n.pending.Load(), Retries: n.retries.Load(), Connections: n.connections.Load(),
		RequestsTotal: n.requestsTotal.Load(), RetriesTotal: n.retriesTotal.Load(), OverflowTotal: n.overflow.Load(),
		ConnectionsTotal: n.connectionsTotal.Load(), ConnectFailedTotal: n.connectFailed.Load(), EjectionsTotal: n.ejections.Load(),
		ChecksTotal: n.checks.Load(), ChecksFailedTotal: n.checksFailed.Load(),
		Panic: st.picker.Panic(), Unusable: st.unusable,
	}
	if groups := st.picker.Groups(); len(groups) > 1 {
		for _, g := range groups {
			out.Localities = append(out.Localities, LocalityStatus{Near: st.near.Says(g.Group), Endpoints: g.Members, Healthy: g.Healthy, Percent: g.Percent, Panic: g.Panic})
		}
	}
	now := c.set.now()
	for _, e := range st.endpoints {
		es := endpointStatus(e.Plan(), &e.key, &st.near)
		es.Requests, es.Connections, es.Idle = e.inFlight.Load(), e.connections.Load(), e.h1.idleCount()+e.h2.idleCount()
		es.Ejected, es.Sick, es.Ejections, es.Why = e.ejected.Load(), e.sick.Load(), e.ejections, e.why
		es.Probing = e.trial.Load() != noTrial
		if es.Ejected {
			es.Until = e.until
		}
		if w := st.plan.Warmup; w != nil {
			if warm, more := balance.Warm(w, 1, now.Sub(e.born)); more {
				es.Warm = float64(warm) / balance.Whole
			}
		}
		if l := e.latency.Load(); l != nil && st.timed {
			es.Latency = time.Duration(l.At(c.set.precise())).Seconds()
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
