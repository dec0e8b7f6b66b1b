package telemetry

// Flags is the set of reasons why a response is not simply what the application said. The names are Envoy's response
// flags, so that dashboards, alerts and people's habits carry over.
type Flags uint32

// The flags, in the order in which they are printed.
const (
	NoHealthyUpstream       Flags = 1 << iota // UH: no endpoint could be picked
	UpstreamConnectFailure                    // UF: no connection could be made
	UpstreamOverflow                          // UO: a circuit limit was passed
	NoRoute                                   // NR: no host or no route matched
	NoCluster                                 // NC: the route names nothing that exists
	UpstreamRetryLimit                        // URX: the last of the retries failed as well
	UpstreamClosed                            // UC: the connection to the endpoint ended early
	UpstreamTimeout                           // UT: the route's or attempt's time was up
	UpstreamReset                             // UR: the endpoint reset the stream
	DownstreamClosed                          // DC: the client went away
	DownstreamProtocolError                   // DPE: the client broke the protocol
	UpstreamProtocolError                     // UPE: the endpoint broke the protocol
	DelayInjected                             // DI
	FaultInjected                             // FI
	RateLimited                               // RL
	Unauthorized                              // UAEX: denied by an authorization policy
	StreamIdle                                // SI: nothing moved for the stream's idle time
	InvalidHeader                             // IH: what a rule makes of the request, its path say, is not valid
	Overloaded                                // OM: this proxy is short of memory
	RequestTimeout                            // DT: the request took longer to arrive than is allowed
	flagsEnd
)

var flagNames = [...]string{
	"UH", "UF", "UO", "NR", "NC", "URX", "UC", "UT", "UR", "DC", "DPE", "UPE", "DI", "FI", "RL", "UAEX", "SI", "IH", "OM", "DT",
}

// String returns the names with a comma between, or "-" for none, as Envoy prints them.
func (f Flags) String() string { return string(f.Append(nil)) }

// Append appends what String returns.
func (f Flags) Append(b []byte) []byte {
	start := len(b)
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			if len(b) > start {
				b = append(b, ',')
			}
			b = append(b, name...)
		}
	}
	if len(b) == start {
		b = append(b, '-')
	}
	return b
}
