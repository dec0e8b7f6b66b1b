// Package watch is the proxy's end of the control stream: it keeps the proxy's plan what the control plane says it should be.
//
// In: the control plane's address and what proves who we are (roots, token). Out: a call of Apply with a whole plan for every
// complete change, and credentials in a trust.Holder for everybody else.
//
//   - A change is all or nothing. A piece that cannot be read, a reference that leads nowhere, or an error from Apply
//     rejects the change with a reason; the plan that was in force stays in force.
//   - The plan in force is kept on disk. A proxy that starts while the control plane is away serves with the last one; it
//     keeps serving for as long as it takes.
//   - A stream that breaks is made again, with backoff and jitter, and goes on where it was: the hello lists what we have.
//
// Goroutines: Run owns the agent (identity/agent), the stream with its one reader, and the writer of the cache, and waits for
// all of them. Apply is called from Run's goroutines, one call at a time.
//
// Neighbours: wire has the words and puts plans together; wire/serve is the other end; app/proxy plugs Apply into proxy/live.
package watch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/agent"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// Options are what a watcher needs. Addr (or Dial), Node, RootsFile and Apply must be set.
type Options struct {
	Addr    string // host:port of the control plane
	Node    ident.Name
	Role    plan.Role
	Version string // of this program, for the control plane's status
	// Credentials receives our certificate; the proxy's listeners and pools read it. Default a new one.
	Credentials *trust.Holder
	RootsFile   string // PEM bundle to verify the control plane by
	TokenFile   string // who we are, for the first certificate
	TrustDomain string // of the control plane; default ident.DefaultTrustDomain
	// CacheDir keeps the plan in force, the certificate and its key (mode 0600) for the next start; "" keeps nothing.
	CacheDir string
	// Apply puts a plan in force, or returns an error and leaves the old one in force. The plan must not be changed. An error
	// that blames pieces of the plan (see PieceError) has only these rejected.
	Apply func(*plan.Plan) error
	// ApplyPacked is Apply for who opens only what it needs; one of the two is set.
	ApplyPacked func(*packed.Plan) error
	Log         *slog.Logger

	Heartbeat time.Duration // between heartbeats; the control plane is dead after three; default 5 s
	// Dial connects to the control plane; default TCP to Addr.
	Dial func(ctx context.Context) (net.Conn, error)
}

// PieceError is what an error from Apply may be (errors.As) to blame one piece of the plan. Errors that are joined blame one
// piece each. kind is the word of wire.Kind: "listener", "routes", "cluster", "endpoints", "policy",
// "secret", "limit".
type PieceError interface {
	error
	PlanPiece() (kind, name string)
}

// Times of a watcher.
const (
	dialTimeout  = 10 * time.Second
	renewTime    = 10 * time.Second
	writeTimeout = 10 * time.Second
	backoffMin   = 100 * time.Millisecond
	// backoffMax is for a control plane that answers, and refuses or hangs up: each try costs it a handshake.
	backoffMax = 15 * time.Second
	// unreachedMax is for one that isn't there: a try costs nobody anything, and until it is back endpoints come and go unnoticed.
	// All pods of a small Deployment can be replaced in a few seconds.
	unreachedMax = 2 * time.Second
	// steady is how long a stream lives that was a good one: what comes after its end is a new failure.
	steady = time.Second
	// renewShare is how much of a certificate's life a stream may use before it is opened anew with the next certificate.
	renewShare = 0.9
)

// Watcher keeps a proxy's plan up to date.
type Watcher struct {
	o     Options
	cache *cache // nil without CacheDir

	state     *wire.State // in force; owned by the goroutine of the stream
	greeted   time.Time   // when the stream greeted the control plane; owned by the goroutine of the stream; zero: it did not
	connected atomic.Bool
	status    atomic.Pointer[Status]
}

// Status is what the proxy can say about its plan.
type Status struct {
	Connected bool      `json:"connected"` // to the control plane, now
	Source    string    `json:"source"`    // "none", "cache", "stream": where the plan in force came from
	Pieces    int       `json:"pieces"`
	Applied   time.Time `json:"applied,omitzero"` // when the plan in force was put in force
	Rejected  string    `json:"rejected,omitempty"`
}

// New returns a watcher. It does nothing before Run.
func New(o Options) *Watcher {
	if o.TrustDomain == "" {
		o.TrustDomain = ident.DefaultTrustDomain
	}
	if o.Credentials == nil {
		o.Credentials = new(trust.Holder)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 5 * time.Second
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", o.Addr)
		}
	}
	if o.ApplyPacked == nil {
		o.ApplyPacked = func(p *packed.Plan) error { return o.Apply(p.Open()) }
	}
	w := &Watcher{o: o, state: wire.NewState(nil)}
	if o.CacheDir != "" {
		w.cache = newCache(filepath.Join(o.CacheDir, cacheFile), o.Log)
	}
	w.status.Store(&Status{Source: "none"})
	return w
}

// Status returns what is in force.
func (w *Watcher) Status() Status {
	s := *w.status.Load()
	s.Connected = w.connected.Load()
	return s
}

// Credentials returns where the proxy's certificate appears.
func (w *Watcher) Credentials() trust.Source { return w.o.Credentials }

// Run keeps the plan up to date until ctx ends, and returns ctx's error.
func (w *Watcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	a := agent.New(agent.Options{
		Addr: w.o.Addr, Node: w.o.Node, RootsFile: w.o.RootsFile, TokenFile: w.o.TokenFile, StateDir: w.o.CacheDir,
		TrustDomain: w.o.TrustDomain, Holder: w.o.Credentials, Log: w.o.Log, Dial: w.o.Dial,
	})
	if w.cache != nil {
		defer w.cache.flush() // last: the stream may have put a plan in force while the others were already leaving
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = a.Run(ctx) })
	if w.cache != nil {
		wg.Go(func() { w.cache.run(ctx) })
		w.restore()
	}
	select {
	case <-a.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	for failures := 0; ; {
		w.greeted = time.Time{}
		err := w.stream(ctx)
		if errors.Is(err, errHandshake) || refusedByAlert(err) {
			a.Renew()
		}
		w.connected.Store(false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errRenewed) {
			failures = 0
			continue
		}
		refusal := new(wire.Refusal)
		if errors.As(err, &refusal) && refusal.Renew {
			renewed(ctx, a)
		}
		if !w.greeted.IsZero() && time.Since(w.greeted) >= steady {
			failures = 0
			if refusal.Again {
				w.o.Log.Info("connecting to the control plane again, as it asks", "reason", refusal.Reason)
				continue
			}
		}
		d := pause(failures, err)
		failures++
		w.o.Log.Warn("no stream from the control plane, the plan in force stays", "error", err, "retry_in", d)
		t := time.NewTimer(d)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// refusedByAlert reports whether the peer ended TLS with an alert. In TLS 1.3 the client's handshake is over before the server looks at
// its certificate (RFC 8446 section 4.4), so that is how a certificate is refused which, say, a root signed that is trusted no longer.
func refusedByAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // crypto/tls: Conn.readRecordOrCCS
}

// renewed waits until the agent has new credentials, for as long as one attempt takes at most: without, the stream goes on with the old.
func renewed(ctx context.Context, a *agent.Agent) {
	changed := a.Changed()
	a.Renew()
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	select {
	case <-changed:
	case <-ctx.Done():
	}
}

// pause returns how long to wait after so many failures in a row and this one: doubling, with jitter.
func pause(failures int, err error) time.Duration {
	most := backoffMax
	if errors.Is(err, errUnreached) {
		most = unreachedMax
	}
	d := min(backoffMin<<min(failures, 10), most)
	return d/2 + rand.N(d/2)
}

// restore puts the kept plan in force.
func (w *Watcher) restore() {
	p, err := w.cache.load(w.o.Node)
	if err != nil {
		w.o.Log.Warn("the kept plan cannot be used, waiting for the control plane", "error", err)
		return
	}
	if p == nil {
		return
	}
	if bad := wire.Check(p, &packed.Plan{}); len(bad) > 0 {
		err = errors.New(wire.Summary(bad))
	} else {
		err = w.o.ApplyPacked(p)
	}
	if err != nil {
		w.o.Log.Warn("the kept plan cannot be used, waiting for the control plane", "error", err)
		return
	}
	w.state = wire.NewState(p)
	w.status.Store(&Status{Source: "cache", Pieces: w.state.Pieces(), Applied: time.Now()})
	w.o.Log.Info("serving with the plan kept on disk until the control plane answers", "pieces", w.state.Pieces())
}

// errUnreached says that nobody answered at the control plane's address.
var errUnreached = errors.New("connecting to the control plane")

// errHandshake says that one of the two sides did not accept the other's certificate.
var errHandshake = errors.New("handshake with the control plane")

// errRenewed ends a stream whose certificate grows old.
var errRenewed = errors.New("the certificate was renewed")

// stream is one connection to the control plane, from dial to end.
func (w *Watcher) stream(ctx context.Context) error {
	creds := w.o.Credentials.Current()
	if creds == nil {
		return trust.ErrNoCredentials
	}
	conn, err := w.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = conn.Close() }()

	out := &writer{conn: conn}
	if err := out.send(wire.TypeHello, &wire.Hello{Node: w.o.Node, Role: w.o.Role, Version: w.o.Version, Have: w.state.Have(), Bundle: wire.Hash(creds.Bundle)}); err != nil {
		return fmt.Errorf("greeting the control plane: %w", err)
	}
	w.connected.Store(true)
	w.greeted = time.Now()
	w.o.Log.Info("connected to the control plane", "pieces", w.state.Pieces())
	// The side that keeps time: heartbeats, and the end of the certificate. Closing the connection ends the reader below.
	wg.Go(func() {
		cancel(w.keepTime(ctx, out, creds))
		_ = conn.Close()
	})
	err = w.read(conn, out)
	cancel(err)
	if errors.Is(context.Cause(ctx), errRenewed) {
		return errRenewed
	}
	return err
}

func (w *Watcher) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := w.o.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreached, err)
	}
	expect := []ident.Identity{wire.ControlPlane(w.o.TrustDomain)}
	conn := tls.Client(nc, trust.ClientConfig(w.o.Credentials, expect, "", []string{wire.ALPN}))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return conn, nil
}

// keepTime sends heartbeats until the stream should end, and says why.
func (w *Watcher) keepTime(ctx context.Context, out *writer, creds *trust.Credentials) error {
	beat := time.NewTicker(w.o.Heartbeat)
	defer beat.Stop()
	left := time.Until(creds.NotAfter)
	renew := time.NewTimer(time.Duration(float64(left) * renewShare))
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-renew.C:
			if w.o.Credentials.Current() != creds {
				return errRenewed
			}
			// No new certificate yet: use this one to its end, and look again soon.
			renew.Reset(max(left/50, 50*time.Millisecond))
		case <-beat.C:
			if err := out.send(wire.TypeHeartbeat, nil); err != nil {
				return fmt.Errorf("the control plane does not read: %w", err)
			}
		}
	}
}

// read takes frames until the stream ends.
func (w *Watcher) read(conn net.Conn, out *writer) error {
	reader := wire.NewReader(conn)
	var delta pending
	for {
		_ = conn.SetReadDeadline(time.Now().Add(3 * w.o.Heartbeat))
		t, body, err := reader.Next(wire.MaxDelta)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the control plane hung up")
			}
			return err
		}
		switch t {
		case wire.TypeHeartbeat:
		case wire.TypeRefusal:
			refusal := new(wire.Refusal)
			if err := wire.Decode(t, t, body, refusal); err != nil {
				return err
			}
			return refusal
		case wire.TypeDelta:
			var d wire.Delta
			if err := wire.Decode(t, t, body, &d); err != nil {
				return err
			}
			if err := delta.add(&d); err != nil {
				return err
			}
			if !d.Complete {
				continue
			}
			whole := delta
			delta = pending{}
			if err := w.apply(&whole, out); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: a control plane does not send a %s here", wire.ErrFrame, t)
		}
	}
}

// maxPending bounds the bytes of a change that comes in several frames.
const maxPending = 256 << 20

// pending is a change that is not complete yet.
type pending struct {
	nonce   uint64
	size    int
	set     []wire.Piece
	removed []wire.Ref
}

func (p *pending) add(d *wire.Delta) error {
	if p.size > 0 && d.Nonce != p.nonce {
		return fmt.Errorf("%w: delta %d begins before delta %d is complete", wire.ErrFrame, d.Nonce, p.nonce)
	}
	p.nonce = d.Nonce
	p.size++
	for i := range d.Set {
		p.size += len(d.Set[i].Bytes)
	}
	if p.size > maxPending {
		return fmt.Errorf("%w: a change of more than %d bytes", wire.ErrFrame, maxPending)
	}
	p.set = append(p.set, d.Set...)
	p.removed = append(p.removed, d.Removed...)
	return nil
}

// apply puts a complete change in force and answers it. The error is the connection's.
func (w *Watcher) apply(d *pending, out *writer) error {
	next, rejected := w.state.With(d.set, d.removed)
	reason := ""
	switch {
	case len(rejected) > 0:
		reason = wire.Summary(rejected)
	case next.Plan.Node.Name != w.o.Node:
		reason = fmt.Sprintf("the plan is of proxy %s, this is %s", next.Plan.Node.Name, w.o.Node)
	default:
		if err := w.o.ApplyPacked(next.Plan); err != nil {
			reason, rejected = err.Error(), blame(err)
		}
	}
	if reason != "" {
		w.o.Log.Error("a change from the control plane cannot be used, the plan in force stays", "reason", reason, "pieces", len(d.set))
		st := *w.status.Load()
		st.Rejected = reason
		w.status.Store(&st)
		return out.send(wire.TypeNack, &wire.Nack{Nonce: d.nonce, Reason: reason, Rejected: rejected})
	}
	w.state = next
	w.status.Store(&Status{Source: "stream", Pieces: next.Pieces(), Applied: time.Now()})
	w.o.Log.Debug("plan applied", "set", len(d.set), "removed", len(d.removed), "pieces", next.Pieces())
	if w.cache != nil {
		w.cache.put(next.Plan)
	}
	return out.send(wire.TypeAck, &wire.Ack{Nonce: d.nonce})
}

// blame returns the pieces that an error of Apply names.
func blame(err error) []wire.Rejection {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []wire.Rejection
		for _, e := range joined.Unwrap() {
			all = append(all, blame(e)...)
		}
		return all
	}
	var pe PieceError
	if !errors.As(err, &pe) {
		return nil
	}
	kind, name := pe.PlanPiece()
	return []wire.Rejection{{Ref: wire.Ref{Kind: wire.KindByName(kind), Name: name}, Reason: err.Error()}}
}

// writer sends frames from two goroutines.
type writer struct {
	mu   sync.Mutex
	conn net.Conn
}

func (o *writer) send(t wire.Type, body any) error {
	frame, err := wire.AppendFrame(nil, t, body)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err = o.conn.Write(frame)
	return err
}
