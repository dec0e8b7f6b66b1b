// Package upstream is where requests leave the proxy: clusters, their endpoints, who is healthy, and the connections that
// are kept to each.
package upstream
