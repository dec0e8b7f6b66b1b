// Package stack is what happens to one HTTP exchange: an ordered list of layers, from the client's head to the last byte
// of the answer. exchange.run is that list; read it from top to bottom.
//
// In come exchanges as a stream.Downstream with the facts of their connection (conn.Peer); out go requests through
// leases of internal/proxy/upstream, responses, and one telemetry.Record each. A Stack is immutable and made from one
// plan: an exchange lives its whole life with the Stack that it began with, whatever plan comes meanwhile.
//
// An exchange runs on the goroutine that calls Serve. A second one is started, and waited for, only while a request body
// that is large or of unknown length is being received, or a tunnel carries bytes both ways. Mirrored requests have
// goroutines of their own, bounded and waited for by Mirrors.
//
// Which route applies is decided by internal/proxy/route, who may pass by internal/proxy/authz, which endpoint is used by
// internal/proxy/upstream; how messages look on the wire is internal/proxy/conn's.
package stack

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/authz"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/limit"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/route"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// Config is what a Stack is made from. Everything is required but Authz, Memory and Log.
type Config struct {
	Node      *plan.Node
	Listener  *plan.Listener
	Table     *route.Table
	Authz     *authz.Engine // nil: everybody may pass
	Upstreams *upstream.Set
	Recorder  *telemetry.Recorder
	Mirrors   *Mirrors
	Memory    *conn.Memory   // of the process; nil: there is no end to it
	Limits    *limit.Set     // of the plan; a name that a rule or the listener has and that is not in it lets nothing pass
	Log       *slog.Logger   // for panics; nil: they are counted only
	Outside   *route.Outside // of the Listener; nil: the Table's Otherwise is the fate of all unknown hosts
	// NoPassthrough makes requests for unknown hosts fail even where the table lets them pass: they did not come as
	// requests to a proxy, so dialling the host that they name could lead back here.
	NoPassthrough bool
}

// Stack decides about the HTTP exchanges of one listener. It implements conn.Handler and conn.Refuser.
type Stack struct {
	Config
	inbound, edge bool
	identity      string            // our own, for x-forwarded-client-cert
	authority     []byte            // of a listener that stands for one host; nil: the client says
	host          []byte            // its host
	clusters      upstream.Clusters // those of its plan
	rules         sync.Map          // *plan.Route → *guards, of those with limits that had a request
	guards        guards            // of all requests
	exchanges     sync.Pool
}

// hostState is what the routes of one virtual host share, from its first request on and as long as its table stays.
type hostState struct {
	budget budget
}

func stateOf(h *route.Host) *hostState {
	return h.Keep(func() any {
		hs := &hostState{}
		hs.budget.init(h.Plan().RetryBudget)
		return hs
	}).(*hostState)
}

var _ conn.Handler = (*Stack)(nil)

// New makes a Stack. The clusters that the table names must be in the Set already; one that is not answers 503 with flag
// NC, as a reference that could not be resolved. Nothing is made for each host or route: the first request of one does that.
func New(c Config) *Stack {
	s := &Stack{
		Config:   c,
		inbound:  c.Listener.Direction == plan.Inbound,
		edge:     c.Listener.Direction == plan.Edge,
		identity: c.Node.Identity.URI(),
		clusters: c.Upstreams.Clusters(),
	}
	s.guards = s.guardsOf(c.Listener.Limits)
	if h := c.Listener.Host; h != "" {
		s.host = []byte(h)
		s.authority = []byte(h)
		if c.Listener.Port != 0 {
			s.authority = strconv.AppendInt(append(s.authority, ':'), int64(c.Listener.Port), 10)
		}
	}
	s.exchanges.New = func() any { return &exchange{} }
	return s
}

// Check refuses a virtual host that would break messages, whoever wrote it: New takes tables whose hosts passed it.
func Check(vh *plan.VirtualHost) error {
	for j := range vh.Routes {
		if err := checkRoute(&vh.Routes[j]); err != nil {
			return fmt.Errorf("route %d (%s): %w", j, vh.Routes[j].Name, err)
		}
	}
	return nil
}

func checkRoute(r *plan.Route) error {
	if err := checkOps(&r.Headers); err != nil {
		return err
	}
	if s := r.Session; s != nil && (s.Cookie == nil && !isFieldName(s.Header) || s.Cookie != nil && !message.IsLowerToken([]byte(strings.ToLower(s.Cookie.Name)))) {
		return errors.New("the route's session has neither a cookie nor a header")
	}
	status := func(what string, n int) error {
		if n < 200 || n > 599 {
			return fmt.Errorf("%s status %d is not a final status", what, n)
		}
		return nil
	}
	for i := range r.Forward {
		d := &r.Forward[i]
		if err := checkOps(&d.Headers); err != nil {
			return err
		}
		if d.Status != 0 {
			if err := status("destination", int(d.Status)); err != nil {
				return err
			}
		}
		if d.Redirect != nil {
			if err := status("redirect", d.Redirect.Status); err != nil {
				return err
			}
		}
	}
	switch {
	case r.Redirect != nil:
		return status("redirect", r.Redirect.Status)
	case r.Direct != nil:
		return status("direct response", r.Direct.Status)
	case r.Fault != nil && r.Fault.AbortStatus != 0:
		return status("abort", r.Fault.AbortStatus)
	}
	return nil
}

// Party is the telemetry identity of a downstream connection, to be stored in conn.Peer.Tag by whoever accepts it: one
// look-up for each connection instead of one for each request.
func Party(rec *telemetry.Recorder, id ident.Identity, w plan.WorkloadLabels) any {
	if id.IsZero() {
		return (*telemetry.Party)(nil)
	}
	return rec.Party(id, w)
}

// Serve implements conn.Handler.
func (s *Stack) Serve(d stream.Downstream, p *conn.Peer) {
	x := s.exchanges.Get().(*exchange)
	whole := false
	defer func() {
		if !whole {
			x.crashed()
		}
	}()
	x.begin(s, d, p)
	x.run()
	x.end()
	whole = true
	s.exchanges.Put(x)
}

// crashed ends an exchange that panicked, on the way out to who catches it (internal/proxy/server): its client and its
// endpoint are let go, and it is recorded. The exchange itself is not used again.
func (x *exchange) crashed() {
	if x.d == nil {
		return // before it began, or after its end
	}
	l := x.lease
	if l != nil {
		l.Cancel(stream.Internal)
	}
	x.d.Reset(stream.Internal)
	x.stopBody()
	if l != nil {
		x.finish(stream.ErrCancelled)
	}
	x.rec.Detail = "panic"
	x.now()
	x.rec.Duration = x.at.Sub(x.rec.Start)
	x.s.Recorder.Record(&x.rec)
}

// aside runs f on a goroutine beside the exchange's. A panic there ends the exchange as one on its own goroutine would:
// give is called, which makes the exchange see the end of what f was doing.
func (x *exchange) aside(wg *sync.WaitGroup, f, give func()) {
	wg.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				x.s.Recorder.Proxy.Panics.Inc()
				if x.s.Log != nil {
					x.s.Log.Error("panic while serving", "what", "request body", "panic", v, "stack", string(debug.Stack()))
				}
				give()
			}
		}()
		f()
	})
}

// Refused implements conn.Refuser: a request that never became an exchange is counted and logged all the same.
func (s *Stack) Refused(p *conn.Peer, status int, detail string) {
	s.Recorder.Proxy.ProtocolErrors.Inc()
	x := &exchange{s: s, p: p}
	x.rec.Reset()
	x.now()
	x.rec.Start = x.at
	x.rec.Listener, x.rec.Direction = s.Listener, s.Listener.Direction
	x.rec.Protocol = telemetry.HTTP11
	x.rec.Status, x.rec.Detail, x.rec.Flags = status, detail, telemetry.DownstreamProtocolError
	x.rec.Origin = &s.Listener.Origin
	x.rec.Remote, x.rec.Local, x.rec.SNI = p.Remote, p.Local, p.SNI
	x.rec.Peer, _ = p.Tag.(*telemetry.Party)
	x.rec.MTLS = p.TLS && !p.Identity.IsZero()
	s.Recorder.Record(&x.rec)
}

const (
	blockedDetail = "host_not_in_registry"
	blockedText   = "the mesh does not know this host, and its policy blocks others"
)

// Block answers an exchange, which never comes to the layers, for a host or an address of one that may not be reached.
func (s *Stack) Block(d stream.Downstream, p *conn.Peer) {
	s.Answer(d, p, 502, telemetry.NoRoute, blockedDetail, blockedText)
}

// Unreached answers a tunnel for a destination that could not be reached; tried says which, and how that went.
func (s *Stack) Unreached(d stream.Downstream, p *conn.Peer, tried *telemetry.Record) {
	x := s.exchanges.Get().(*exchange)
	x.begin(s, d, p)
	r := &x.rec
	r.Cluster, r.Endpoint, r.Attempts, r.Failure, r.Origin = tried.Cluster, tried.Endpoint, tried.Attempts, tried.Failure, tried.Origin
	x.answer(503, tried.Flags, tried.Detail, "upstream connect error: "+tried.Failure)
	x.end()
	s.exchanges.Put(x)
}

// Answer answers an exchange that never comes to the layers, and records it.
func (s *Stack) Answer(d stream.Downstream, p *conn.Peer, status int, flags telemetry.Flags, detail, text string) {
	x := s.exchanges.Get().(*exchange)
	x.begin(s, d, p)
	x.answer(status, flags, detail, text)
	x.end()
	s.exchanges.Put(x)
}
