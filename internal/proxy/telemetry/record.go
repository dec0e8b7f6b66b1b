package telemetry

import (
	"net/netip"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Protocol is what was spoken, for the request_protocol label and the protocol key of the access log.
type Protocol uint8

// The protocols.
const (
	HTTP10 Protocol = iota
	HTTP11
	HTTP2
	GRPC // gRPC over HTTP/2
	TCP
)

var (
	protocolLogNames    = [...]string{HTTP10: "HTTP/1.0", HTTP11: "HTTP/1.1", HTTP2: "HTTP/2", GRPC: "HTTP/2", TCP: ""}
	protocolMetricNames = [...]string{HTTP10: "http", HTTP11: "http", HTTP2: "http", GRPC: "grpc", TCP: "tcp"}
)

// NoGRPC is the GRPCStatus of an exchange that is not gRPC, or that ended without a status.
const NoGRPC = -1

// Record says everything about one finished exchange: an HTTP request with its response, or a TCP connection.
//
// The stack owns it, usually one for each stream, reused. Byte slices need to stay valid only during
// Recorder.Record, which keeps nothing of them; pointers go to parts of the plan and are used as cache keys.
// The zero value of each field means "not known", except GRPCStatus (see Reset).
type Record struct {
	Start    time.Time     // first byte of the request
	Duration time.Duration // until the last byte of the response

	Listener  *plan.Listener
	Direction plan.Direction
	Protocol  Protocol

	Method    []byte
	Authority []byte // as the client sent it
	Path      []byte // as sent upstream, after a rewrite
	Original  []byte // path as the client sent it; empty when it was not rewritten
	Query     []byte // without '?'
	HasQuery  bool

	Status     int // HTTP status sent downstream; 0 none
	GRPCStatus int // NoGRPC, or the code
	Flags      Flags
	// Detail says in one token who ended the exchange and why ("via_upstream", "route_not_found",
	// "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]]").
	Detail string
	// Failure is the cause in words when the upstream could not be used ("connection refused").
	Failure string
	// Origin is the rule that decided: the route, or the policy that denied. nil when none was reached.
	Origin *ident.Origin

	BodyIn, BodyOut uint64 // body bytes from and to the client
	HeadIn, HeadOut uint64 // bytes of the heads as they went over the wire; 0: unknown
	// Messages of gRPC that came and went whole.
	MessagesIn, MessagesOut uint64

	Peer *Party // the client as the connection proved it; nil for an unauthenticated client, or this workload's own application
	MTLS bool   // the downstream connection is mesh TLS with a verified peer

	Route       *plan.Route
	VirtualHost *plan.VirtualHost
	Cluster     *plan.Cluster
	Endpoint    *plan.Endpoint
	Attempts    int // 1 for a request that was sent once; 0 when none was sent

	RequestID    []byte
	ForwardedFor []byte
	UserAgent    []byte
	ServiceTime  time.Duration // from the request sent to the response head, of the last attempt; 0 none

	Remote, Local                 netip.AddrPort // of the downstream connection
	UpstreamRemote, UpstreamLocal netip.AddrPort
	SNI                           string
}

// Reset empties r for the next exchange.
func (r *Record) Reset() { *r = Record{GRPCStatus: NoGRPC} }

// Party is one end of a request as metrics name it. Recorder.Party makes them: one pointer for each distinct content,
// so that a connection asks once and every request on it is counted without touching a string.
type Party struct {
	Identity ident.Identity
	Workload plan.WorkloadLabels
}
