// Package upstream is where requests leave the proxy: clusters, their endpoints, who of them is healthy, and the
// connections that are kept to each.
//
// In come the clusters and endpoints of a plan (Set.Update) and attempts of requests (Cluster.Acquire); out goes a
// Lease, which is a stream to one endpoint, or an error that says which of the response flags UH, UO and UF it is.
// Opaque connections go through Cluster.Dial. What the leases report on their end feeds outlier ejection.
//
// The path of a request, top to bottom:
//
//	Acquire   circuit limits → pick (internal/proxy/balance) → an idle connection of the endpoint's pool
//	          → else a new one (dial.go: TCP, then mesh TLS by internal/identity/trust) → or wait in line for one
//	Done      outlier report → connection back to the pool, or to the first in line
//
// A Cluster reads everything it decides by from one immutable state behind an atomic pointer. It is replaced by Update and
// when an endpoint is ejected or let back; an Endpoint lives through that with its pools and counters as long as its
// address, identity and security stay the same. Dials run on the goroutine of the request that needs them. The Set
// owns the goroutines there are: one keeper (idle connections, ejection times, unused passthrough clusters; it sleeps while
// there is nothing to keep) and one reader for each HTTP/2 connection; Close waits for all.
//
// Neighbours: internal/proxy/stack decides when to retry and where not to; internal/proxy/conn speaks HTTP on the
// connections that are made here.
package upstream
