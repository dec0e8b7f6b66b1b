package proxy

import (
	"maps"
	"slices"

	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// collect brings the gauges of telemetry up to date at each scrape, and adds the metrics of clusters.
func (a *App) collect(w *telemetry.Writer) {
	var expiry, connected, short int64
	if c := a.creds.Current(); c != nil {
		expiry = c.NotAfter.Unix()
	}
	if a.stream != nil && a.stream.Status().Connected {
		connected = 1
	}
	if a.conns.Short() {
		short = 1
	}
	a.rec.Proxy.CertificateExpiry.Set(expiry)
	a.rec.Proxy.ControlUp.Set(connected)
	a.rec.Proxy.MemoryShort.Set(short)
	w.Family("malha_proxy_bodies_shed_total", "counter", "HTTP/2 bodies that were ended because nobody read them and no memory was left.")
	waiting, ended := a.conns.Bodies()
	w.Uint("malha_proxy_bodies_shed_total", ended)
	w.Family("malha_proxy_bodies_waiting_bytes", "gauge", "Memory of HTTP/2 bodies that wait for a reader; 0 without a memory limit.")
	w.Int("malha_proxy_bodies_waiting_bytes", waiting)
	writeClusters(w, a.proxy.Upstreams().Snapshot().Clusters)
}

// clusterMetrics are the metrics of a cluster, in the order in which they are written.
var clusterMetrics = [...]struct {
	name, kind, help string
	value            func(*upstream.ClusterStatus) float64
}{
	{"malha_proxy_cluster_requests", "gauge", "Requests in flight.", func(c *upstream.ClusterStatus) float64 { return float64(c.Requests) }},
	{"malha_proxy_cluster_pending_requests", "gauge", "Requests that wait for a connection.", func(c *upstream.ClusterStatus) float64 { return float64(c.Pending) }},
	{"malha_proxy_cluster_connections", "gauge", "Open upstream connections.", func(c *upstream.ClusterStatus) float64 { return float64(c.Connections) }},
	{"malha_proxy_cluster_connections_total", "counter", "Upstream connections made.", func(c *upstream.ClusterStatus) float64 { return float64(c.ConnectionsTotal) }},
	{"malha_proxy_cluster_connect_failed_total", "counter", "Upstream connections that could not be made.", func(c *upstream.ClusterStatus) float64 { return float64(c.ConnectFailedTotal) }},
	{"malha_proxy_cluster_overflow_total", "counter", "Requests refused by a circuit limit.", func(c *upstream.ClusterStatus) float64 { return float64(c.OverflowTotal) }},
	{"malha_proxy_cluster_retries_total", "counter", "Retries sent.", func(c *upstream.ClusterStatus) float64 { return float64(c.RetriesTotal) }},
	{"malha_proxy_cluster_ejections_total", "counter", "Endpoints put aside by outlier detection.", func(c *upstream.ClusterStatus) float64 { return float64(c.EjectionsTotal) }},
	{"malha_proxy_cluster_health_checks_total", "counter", "Active health checks.", func(c *upstream.ClusterStatus) float64 { return float64(c.ChecksTotal) }},
	{"malha_proxy_cluster_health_checks_failed_total", "counter", "Active health checks that failed.", func(c *upstream.ClusterStatus) float64 { return float64(c.ChecksFailedTotal) }},
	{"malha_proxy_cluster_endpoints", "gauge", "Endpoints that are known.", func(c *upstream.ClusterStatus) float64 { return float64(len(c.Endpoints)) }},
	{"malha_proxy_cluster_ejected_endpoints", "gauge", "Endpoints that are put aside now.", func(c *upstream.ClusterStatus) float64 {
		n := 0
		for i := range c.Endpoints {
			if c.Endpoints[i].Ejected || c.Endpoints[i].Sick {
				n++
			}
		}
		return float64(n)
	}},
}

// writeClusters writes one sample for each metric and name. Clusters that share a name (one for each host that is dialled
// as written) are added up.
func writeClusters(w *telemetry.Writer, clusters []upstream.ClusterStatus) {
	for _, m := range clusterMetrics {
		sums := map[string]float64{}
		for i := range clusters {
			sums[clusters[i].Name] += m.value(&clusters[i])
		}
		if len(sums) == 0 {
			continue
		}
		w.Family(m.name, m.kind, m.help)
		for _, name := range slices.Sorted(maps.Keys(sums)) {
			w.Float(m.name, sums[name], telemetry.Label{Name: "cluster", Value: name})
		}
	}
}
