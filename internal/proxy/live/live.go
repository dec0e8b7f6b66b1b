// Package live runs a plan: it turns each plan that comes into listeners, stacks and clusters, puts them in force all at
// once, and retires what the plan before had.
//
// In comes a plan.Plan (Proxy.Apply), from a file or from the control stream; out goes a serving proxy. A plan is built
// aside, and refused as a whole with the name of the piece that is bad; the one before then stays in force. What is
// open stays open: a listener is rebound only when its address changes, pools and health of endpoints survive, and an
// exchange in flight keeps the rules that it began with.
//
// The Proxy owns a goroutine for each listener, the one that waits for idle connections (conn.Lot), and those that drain
// listeners which a plan took away; Run returns after all of them. internal/app/proxy wires it to its plans, credentials and
// admin port.
package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/server"
	"github.com/malha-mesh/malha/internal/proxy/stack"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// DefaultDrainTime is how long connections may take to finish when the proxy, or a listener, goes away.
const DefaultDrainTime = 45 * time.Second // Istio drainDuration

// Options are what a Proxy needs from outside.
type Options struct {
	Conn        *conn.Config // nil: conn.Defaults
	Credentials trust.Source // nil: no mesh TLS
	Recorder    *telemetry.Recorder
	Log         *slog.Logger     // nil: nothing is logged
	DrainTime   time.Duration    // 0: DefaultDrainTime; less: none
	Server      server.Options   // limits only; the rest is set here
	Upstream    upstream.Options // Dial and Now only; the rest is set here

	// MaxConnections and MaxHandshakes are of all listeners together, see server.NewRoom.
	MaxConnections, MaxHandshakes int

	// Inherit returns the open socket of the listener with a key, from a process that this one replaces; nil: there is none,
	// so the address is bound. Inherit itself may be nil.
	Inherit func(key string) *net.TCPListener
	// InheritPacket is Inherit for sockets of captured queries.
	InheritPacket func(key string) *net.UDPConn
	// Hold keeps all listeners from accepting until it is closed; nil: they accept at once.
	Hold <-chan struct{}
}

// Proxy is a proxy that runs plans.
type Proxy struct {
	o         Options
	upstreams *upstream.Set
	mirrors   stack.Mirrors
	lot       conn.Lot
	poll      conn.Poll
	doors     atomic.Pointer[[]netip.AddrPort] // addresses of the listeners
	secrets   atomic.Pointer[trust.Materials]  // of the plan in force, for the clusters
	wg        sync.WaitGroup                   // listeners, and drains of those that were removed
	life      context.Context                  // ends when Drain has no more time
	end       context.CancelFunc

	mu        sync.Mutex
	plan      *packed.Plan // in force; nil before the first
	built     *built       // what it was built to
	applied   time.Time
	listeners map[string]*server.Listener // by key
	captured  map[string]*server.Listener // the doors of captured connections, by key
	retiring  map[string]*server.Listener // those that plans took away and that still drain, by key
	names     *names                      // the doors of captured queries; nil: there are none
	here      addresses                   // of the machine
	closed    bool
	yielded   bool
	draining  chan struct{} // closed when Drain is called
	drained   chan struct{} // closed when Drain is done
}

// New returns a Proxy without a plan.
func New(o Options) *Proxy {
	if o.Conn == nil {
		o.Conn = conn.Defaults()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Recorder == nil {
		o.Recorder = telemetry.New(telemetry.Options{})
	}
	if o.DrainTime == 0 {
		o.DrainTime = DefaultDrainTime
	}
	p := &Proxy{o: o, listeners: make(map[string]*server.Listener), retiring: make(map[string]*server.Listener), draining: make(chan struct{}), drained: make(chan struct{})}
	c := *o.Conn
	c.Poll = &p.poll
	o.Conn, p.o.Conn = &c, &c
	o.Upstream.Credentials, o.Upstream.Conn, o.Upstream.Log = o.Credentials, o.Conn, o.Log
	p.life, p.end = context.WithCancel(context.Background())
	if o.Upstream.Secrets == nil {
		o.Upstream.Secrets = func(name string) (*trust.Material, error) { return p.secrets.Load().Get(name) }
	}
	if o.Upstream.Own == nil {
		o.Upstream.Own = p.owns
	}
	p.upstreams = upstream.New(o.Upstream)
	p.o.Server.Lot = &p.lot
	p.o.Server.Room = server.NewRoom(o.MaxConnections, o.MaxHandshakes)
	p.o.Server.Conn, p.o.Server.Credentials, p.o.Server.Upstreams = o.Conn, o.Credentials, p.upstreams
	p.o.Server.Recorder, p.o.Server.Log = o.Recorder, o.Log
	return p
}

// Upstreams returns the clusters, for the admin port.
func (p *Proxy) Upstreams() *upstream.Set { return p.upstreams }

// Plan returns the plan in force, nil before the first. It is opened for who asks.
func (p *Proxy) Plan() *plan.Plan {
	p.mu.Lock()
	inForce := p.plan
	p.mu.Unlock()
	if inForce == nil {
		return nil
	}
	return inForce.Open()
}

// key is what makes a listener the same one from plan to plan: its address, so that it is rebound only when that changes.
// Where the kernel chooses the port, the name is.
func key(l *plan.Listener) string {
	if l.Bind == "" {
		return captureKey(l)
	}
	if _, port, err := net.SplitHostPort(l.Bind); err == nil && port == "0" {
		return l.Name + " " + l.Bind
	}
	return l.Bind
}

// Apply is ApplyPacked for a plan that is not packed.
func (p *Proxy) Apply(next *plan.Plan) error {
	pack, err := packed.Of(next)
	if err != nil {
		return err
	}
	p.mu.Lock()
	inForce := p.plan
	p.mu.Unlock()
	return p.ApplyPacked(pack.Keeping(inForce))
}

// ApplyPacked puts a plan in force. It must not be changed afterwards. On an error, which names the bad piece, nothing has
// changed. Route tables and clusters that are those of before are not made again.
func (p *Proxy) ApplyPacked(next *packed.Plan) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.apply(next); err != nil {
		p.o.Recorder.Proxy.ConfigRejected.Inc()
		return err
	}
	p.o.Recorder.Proxy.ConfigApplied.Inc()
	p.o.Recorder.Proxy.ConfigTimestamp.Set(p.applied.Unix())
	return nil
}

// notOpened is why an address could not be opened. It is the mistake of a piece, without which the rest of a plan may do, unless the
// process has no descriptors left: it could then accept nothing at its other listeners.
func notOpened(kind, name, bind string, err error) error {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%s %s: %w: allow this process more of them (ulimit -n)", kind, name, err)
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%w (is another program using %s?)", err, bind)
	}
	return &PieceError{kind, name, err}
}

func (p *Proxy) apply(next *packed.Plan) error {
	if p.closed || p.yielded {
		return fmt.Errorf("the proxy is shutting down")
	}
	b, err := prepare(next, p.built, p.o.Credentials)
	if err != nil {
		return err
	}
	// Open what is new before anything changes: an address that is taken refuses the plan.
	opened := make(map[string]*server.Listener)
	taken, err := p.openCapture(next.Capture)
	if err != nil {
		return err
	}
	for i := range next.Listeners {
		l := &next.Listeners[i]
		if p.listeners[key(l)] != nil {
			continue
		}
		ln, err := p.listen(l)
		if err != nil {
			for _, o := range opened {
				_ = o.Close()
			}
			p.closeCapture(taken)
			return notOpened("listener", l.Name, l.Bind, err)
		}
		opened[key(l)] = ln
	}

	// From here on nothing can fail. Secrets and clusters first: the rules refer to them.
	p.secrets.Store(b.secrets)
	p.upstreams.Locate(&next.Node)
	p.upstreams.Update(next.Clusters, next.Endpoints)
	p.upstreams.Deliver(deliveries(next))
	p.o.Recorder.SetNode(next.Node)
	kept := make(map[string]*server.Listener, len(next.Listeners))
	for i := range next.Listeners {
		k := key(&next.Listeners[i])
		ln := p.listeners[k]
		if ln == nil {
			ln = opened[k]
		}
		ln.SetRules(b.rules(p, &next.Listeners[i]))
		kept[k] = ln
	}
	for k, ln := range opened {
		p.wg.Go(func() {
			p.hold()
			ln.Serve()
		})
		if old := p.retiring[k]; old != nil {
			old.Leave() // its successor has the socket
		}
	}
	p.serveCapture(taken, next, kept)
	for k, ln := range p.listeners {
		if kept[k] == nil {
			p.retire(k, ln)
		}
	}
	p.tellFaults(b, p.built)
	doors := append(reached(kept), reached(p.captured)...)
	p.doors.Store(&doors)
	p.listeners = kept
	p.plan, p.built, p.applied = next, b, time.Now()
	return nil
}

// owns reports whether an address is that of a listener of this proxy.
func (p *Proxy) owns(a netip.AddrPort) bool {
	doors := p.doors.Load()
	if doors == nil {
		return false
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	return slices.Contains(*doors, a)
}

// reached returns the addresses at which listeners are reached: one on all addresses is so at each that the machine has.
func reached(listeners map[string]*server.Listener) []netip.AddrPort {
	var doors []netip.AddrPort
	var machine []net.Addr
	for _, ln := range listeners {
		a := ln.Addr()
		if !a.IsValid() {
			continue
		}
		doors = append(doors, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		if !a.Addr().IsUnspecified() {
			continue
		}
		if machine == nil {
			machine, _ = net.InterfaceAddrs()
		}
		for _, m := range machine {
			if p, err := netip.ParsePrefix(m.String()); err == nil {
				doors = append(doors, netip.AddrPortFrom(p.Addr().Unmap(), a.Port()))
			}
		}
	}
	return doors
}

// listen opens a listener, with the socket that is handed over if there is one.
func (p *Proxy) listen(l *plan.Listener) (*server.Listener, error) {
	if l.Bind == "" {
		return server.Fed(p.o.Server), nil
	}
	if p.o.Inherit != nil {
		if ln := p.o.Inherit(key(l)); ln != nil {
			return server.On(p.o.Server, ln), nil
		}
	}
	if ln := p.comesBack(key(l)); ln != nil {
		return server.On(p.o.Server, ln), nil
	}
	return server.Listen(context.Background(), p.o.Server, l.Bind)
}

// hold waits until connections may be accepted. An end is one, too: who drains has to serve what waits.
func (p *Proxy) hold() {
	if p.o.Hold == nil {
		return
	}
	select {
	case <-p.o.Hold:
	case <-p.draining:
	}
}

// Socket returns the listening socket with a key, to hand it over; nil when there is none. It stays the Proxy's.
func (p *Proxy) Socket(key string) syscall.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if ln := p.listeners[key]; ln != nil {
		return ln.Socket()
	}
	if ln := p.captured[key]; ln != nil {
		return ln.Socket()
	}
	return p.names.socket(key)
}

// Yield stops accepting, at once and for good, because another process does so on the same sockets. What is open goes on
// until Drain, which gives idle connections a while to bring one more request: half of DrainTime, at most 10 s.
func (p *Proxy) Yield() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.yielded = true
	idle := min(p.o.DrainTime/2, 10*time.Second)
	for _, ln := range p.captured {
		ln.Yield(idle)
	}
	for _, ln := range p.listeners {
		ln.Yield(idle)
	}
	p.names.close()
}

// retire drains a listener that a plan took away. The caller holds mu.
func (p *Proxy) retire(key string, ln *server.Listener) {
	p.retiring[key] = ln
	p.wg.Go(func() {
		ln.Unfed()
		ctx, cancel := context.WithTimeout(p.life, p.o.DrainTime)
		defer cancel()
		ln.Drain(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.retiring[key] == ln {
			delete(p.retiring, key)
		}
	})
}

// comesBack returns the socket of a listener that a plan took away, and the next one has again, while its door is still open: nobody
// else could listen there.
func (p *Proxy) comesBack(key string) *net.TCPListener {
	if old := p.retiring[key]; old != nil {
		return old.Share()
	}
	return nil
}

// Run serves until ctx is over, then drains for at most DrainTime, and returns when everything has ended.
func (p *Proxy) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-p.draining:
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.o.DrainTime)
	defer cancel()
	p.Drain(end)
	return nil
}

// Drain stops accepting, lets exchanges finish until ctx is over, then cuts what is left. It returns when everything
// has ended; the Proxy is of no use afterwards. It may be called more than once.
func (p *Proxy) Drain(ctx context.Context) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.drained
		return
	}
	p.closed = true
	close(p.draining)
	listeners, captured := p.listeners, p.captured
	p.mu.Unlock()
	p.o.Recorder.Proxy.Draining.Set(1)
	stop := context.AfterFunc(ctx, p.end)
	defer stop()
	defer p.end()

	// Inbound first: while the application still answers what came in, it needs the others to reach what it depends on.
	for _, inbound := range [...]bool{true, false} {
		var each sync.WaitGroup
		for k, ln := range captured {
			if isInbound(k) == inbound {
				each.Go(func() { ln.Drain(ctx) })
			}
		}
		for _, ln := range listeners {
			if (ln.Rules().Listener.Direction == plan.Inbound) == inbound {
				each.Go(func() { ln.Drain(ctx) })
			}
		}
		each.Wait()
	}
	p.names.close() // last: what drains may still ask for names
	p.wg.Wait()
	p.lot.Close()
	mirrored := make(chan struct{})
	go func() {
		p.mirrors.Close()
		close(mirrored)
	}()
	select {
	case <-mirrored: // who still waits for a connection gets it
	case <-ctx.Done():
	}
	_ = p.upstreams.Close(ctx)
	<-mirrored // they end with their connections
	p.poll.Close()
	close(p.drained)
}

// Shed ends one of every so many connections of clients, for when there is no memory left for those that are open.
func (p *Proxy) Shed(every int) (ended int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, listeners := range [...]map[string]*server.Listener{p.listeners, p.retiring} {
		for _, ln := range listeners {
			ended += ln.Shed(every)
		}
	}
	return ended
}

// Status is what a Proxy looks like at one moment, for the admin port.
type Status struct {
	Node      plan.Node        `json:"node"`
	Applied   time.Time        `json:"applied,omitzero"` // when the plan in force was applied
	Draining  bool             `json:"draining,omitempty"`
	Faults    []Fault          `json:"faults,omitempty"` // what of the plan in force can't be used as it was asked
	Listeners []ListenerStatus `json:"listeners"`        // sorted by name
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name        string         `json:"name"`
	Address     netip.AddrPort `json:"address"`
	Direction   plan.Direction `json:"direction"`
	Protocol    ident.Protocol `json:"protocol"`
	Connections int            `json:"connections"`
}

// Status returns what the Proxy looks like now.
func (p *Proxy) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Applied: p.applied, Draining: p.closed, Listeners: []ListenerStatus{}}
	if p.plan != nil {
		s.Node = p.plan.Node
	}
	if p.built != nil {
		s.Faults = p.built.faults
	}
	for _, ln := range p.listeners {
		r := ln.Rules().Listener
		s.Listeners = append(s.Listeners, ListenerStatus{
			Name: r.Name, Address: ln.Addr(), Direction: r.Direction, Protocol: r.Protocol, Connections: ln.Connections(),
		})
	}
	sort.Slice(s.Listeners, func(i, j int) bool { return s.Listeners[i].Name < s.Listeners[j].Name })
	return s
}
