package explain

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Written is what one proxy wrote.
type Written struct {
	Node  ident.Name
	Lines []string
}

// Trace is what happened to one request at each proxy that saw it, as their access logs tell.
type Trace struct {
	ID   string `json:"id"`
	Hops []Hop  `json:"hops"` // in the order in which the request came to them
	// Logged is the number of access log lines that were looked at; with none the logs are switched off.
	Logged int `json:"-"`
}

// Hop is one exchange at one proxy.
type Hop struct {
	Node      ident.Name     `json:"node"`
	Listener  string         `json:"listener,omitempty"`
	Direction plan.Direction `json:"direction,omitempty"`
	Start     time.Time      `json:"start"`
	Method    string         `json:"method,omitempty"`
	Authority string         `json:"authority,omitempty"`
	Path      string         `json:"path,omitempty"`
	Protocol  string         `json:"protocol,omitempty"`
	Status    int            `json:"status"`
	Flags     []Flag         `json:"flags,omitempty"`
	Detail    string         `json:"detail,omitempty"`
	Failure   string         `json:"failure,omitempty"`
	Millis    int64          `json:"durationMillis"`
	Upstream  *int64         `json:"upstreamMillis,omitempty"` // until the response head
	Cluster   string         `json:"cluster,omitempty"`
	Endpoint  string         `json:"endpoint,omitempty"` // IP:port
	Workload  ident.Name     `json:"workload,omitzero"`  // behind the endpoint
	Route     string         `json:"route,omitempty"`
	Origin    string         `json:"origin,omitempty"` // the rule that decided, "Kind/namespace/name rule (file:line)"
}

// Flag is a response flag and what it means.
type Flag struct {
	Name    string `json:"name"`
	Meaning string `json:"meaning"`
}

// line is what an access log line holds that a Hop needs (internal/proxy/telemetry).
type line struct {
	Start     time.Time `json:"start_time"`
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	Protocol  string    `json:"protocol"`
	Status    int       `json:"response_code"`
	Flags     string    `json:"response_flags"`
	Detail    string    `json:"response_code_details"`
	Failure   string    `json:"upstream_transport_failure_reason"`
	Millis    int64     `json:"duration"`
	Upstream  *int64    `json:"upstream_service_time"`
	RequestID string    `json:"request_id"`
	Authority string    `json:"authority"`
	Host      string    `json:"upstream_host"`
	Cluster   string    `json:"upstream_cluster"`
	Local     string    `json:"downstream_local_address"`
	Route     string    `json:"route_name"`
	Origin    string    `json:"route_origin"`

	Direction plan.Direction `json:"direction"`
}

// Trace finds a request by its id (x-request-id) in what the proxies wrote.
func (m *Mesh) Trace(id string, written []Written) *Trace {
	t := &Trace{ID: id}
	for _, w := range written {
		for _, text := range w.Lines {
			if !strings.HasPrefix(text, `{"start_time"`) {
				continue
			}
			t.Logged++
			if !strings.Contains(text, id) {
				continue
			}
			var l line
			if json.Unmarshal([]byte(text), &l) == nil && l.RequestID == id {
				t.Hops = append(t.Hops, m.hop(w.Node, &l))
			}
		}
	}
	// Lines have milliseconds; what began in the same one encloses what it waited for, and a sender is before a receiver.
	slices.SortStableFunc(t.Hops, func(a, b Hop) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(b.Millis, a.Millis), cmp.Compare(inward(a.Direction), inward(b.Direction)))
	})
	t.follow()
	return t
}

func inward(d plan.Direction) int {
	switch d {
	case plan.Edge:
		return 0
	case plan.Outbound:
		return 1
	}
	return 2
}

// follow puts each hop that was reached through another right behind it, where the clock does not tell.
func (t *Trace) follow() {
	for i := range t.Hops {
		for j := i + 1; j < len(t.Hops); j++ {
			if t.Hops[i].Workload != t.Hops[j].Node || t.Hops[i].Direction == plan.Inbound || t.Hops[j].Direction != plan.Inbound {
				continue
			}
			next := t.Hops[j]
			t.Hops = slices.Insert(slices.Delete(t.Hops, j, j+1), i+1, next)
			break
		}
	}
}

func (m *Mesh) hop(node ident.Name, l *line) Hop {
	h := Hop{
		Node: node, Start: l.Start, Method: l.Method, Authority: l.Authority, Path: l.Path, Protocol: l.Protocol, Status: l.Status,
		Flags: Flags(l.Flags), Detail: l.Detail, Failure: l.Failure, Millis: l.Millis, Upstream: l.Upstream, Cluster: l.Cluster,
		Endpoint: l.Host, Route: l.Route, Origin: l.Origin, Direction: l.Direction,
	}
	if d, ok := m.binds[l.Host]; ok {
		h.Workload = d.node.plan.Node.Name
	}
	if n := m.find(node); n != nil {
		for i := range n.plan.Listeners {
			if d := &n.plan.Listeners[i]; takes(d.Bind, l.Local) {
				h.Listener, h.Direction = d.Name, d.Direction
			}
		}
	}
	return h
}

// takes reports whether connections for an address come to a listener.
func takes(bind, local string) bool {
	if bind == local {
		return true
	}
	b, err := netip.ParseAddrPort(bind)
	to, terr := netip.ParseAddrPort(local)
	return err == nil && terr == nil && b.Addr().IsUnspecified() && b.Port() == to.Port()
}

// Flags explains the response flags of an access log line ("UF,URX"; "-" for none).
func Flags(s string) []Flag {
	if s == "-" || s == "" {
		return nil
	}
	var out []Flag
	for name := range strings.SplitSeq(s, ",") {
		out = append(out, Flag{Name: name, Meaning: meaning(name)})
	}
	return out
}

// meaning says what a response flag means; "" for one that is not known.
func meaning(flag string) string {
	switch flag {
	case "UH":
		return "no endpoint of the destination could be picked"
	case "UF":
		return "no connection to the endpoint could be made"
	case "UO":
		return "a circuit limit was passed, or the retry budget was used up"
	case "NR":
		return "no host or no rule matched"
	case "NC":
		return "the rule names a destination that does not exist"
	case "URX":
		return "the last of the retries failed as well"
	case "UC":
		return "the connection to the endpoint ended early"
	case "UT":
		return "the time of the rule or the attempt was up"
	case "UR":
		return "the endpoint reset the stream"
	case "DC":
		return "the client went away"
	case "DPE":
		return "the client broke the protocol"
	case "UPE":
		return "the endpoint broke the protocol"
	case "DI":
		return "a delay was injected, as the rule's fault says"
	case "FI":
		return "the request was aborted, as the rule's fault says"
	case "RL":
		return "a rate limit was passed"
	case "UAEX":
		return "an authorization policy denied it"
	case "SI":
		return "nothing moved for the stream's idle time"
	case "IH":
		return "what the rule makes of the request, its path say, is not valid"
	case "OM":
		return "the proxy is short of memory, and takes nothing new"
	case "DT":
		return "the request took longer to arrive than is allowed"
	}
	return ""
}
