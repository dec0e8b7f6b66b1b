// Package conformance holds malha-proxy, the program, against test suites that others wrote: h2spec for both sides of
// HTTP/2, and the interoperability cases of gRPC.
//
// It is a Go module of its own, so that what the suites need never comes near the product's go.mod. `make conformance`
// runs it and writes the tables of docs/conformance.md.
package conformance
