package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/wire"
)

// session is one stream with one proxy.
type session struct {
	s      *Server
	conn   net.Conn
	reader *wire.Reader // of the reading goroutine
	node   ident.Name

	wake    chan struct{} // the target changed
	replies chan reply    // from the reading goroutine; one delta is in flight, so one place is enough
	expires time.Time     // of the certificate that opened the stream
	bundle  trust.Bundle  // of the roots that the proxy has; zero: it does not say

	// Owned by run's goroutine.
	known    []*blob               // what the proxy has confirmed
	held     map[wire.Ref]heldBack // what it refused of aim, and is not sent again
	aim      *snapshot             // the target that was last sent, in full or in part
	keeps    bool                  // what stands in for what it refused refers to pieces that are to go
	due      time.Time             // when what it refused is sent once more; zero: it refused nothing
	wait     time.Duration         // and how long that was put off, last time
	trying   bool                  // it is being sent once more
	nonce    uint64
	inflight *flight
	over     error     // why the stream ends as soon as nothing is in flight; nil: it goes on
	tell     time.Time // when the proxy is told that there are other roots; zero: it has those in force

	// Guarded by Server.mu.
	cancel context.CancelCauseFunc
	seen   *snapshot // the target that the proxy has answered for, as far as it would
	stuck  bool      // it refused seen without saying which piece
}

// flight is a delta that was sent and not answered.
type flight struct {
	target *snapshot
	want   []*blob // what the proxy has when it confirms
	sent   time.Time
}

// heldBack is a version of a piece that a proxy cannot use.
type heldBack struct {
	hash   wire.Hash
	reason string
}

// reply is an Ack, or a Nack when nack is set.
type reply struct {
	nonce uint64
	nack  *wire.Nack
}

// How a stream ends when nobody did anything wrong.
var (
	errReplaced = errors.New("the proxy connected again")
	errExpired  = errors.New("the certificate that opened the stream expired: connect again with the new one")
	errAged     = errors.New("the stream is old enough: connect again, to whichever replica")
	errRoots    = errors.New("the mesh has other roots: ask for a certificate, with which they come, and connect again")
)

func (ss *session) poke() {
	select {
	case ss.wake <- struct{}{}:
	default:
	}
}

// run is the stream from hello to end. Whatever the proxy should be told, it tells.
func (ss *session) run(ctx context.Context, status ProxyStatus) {
	s := ss.s
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	n := s.node(ss.node)
	if old := n.session; old != nil {
		old.cancel(errReplaced)
	}
	status.Since = n.status.Since
	n.session, n.status = ss, status
	ss.cancel = cancel
	s.mu.Unlock()
	s.o.Log.Info("proxy connected", "node", ss.node.String(), "identity", status.Identity.URI(), "version", status.Version, "pieces", len(ss.known))
	s.o.OnEvent(Event{Kind: EventConnected, Node: ss.node})

	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(ss.read())
	}()
	// A write that hangs must not outlive the stream.
	stop := context.AfterFunc(ctx, func() { _ = ss.conn.SetDeadline(time.Now().Add(time.Second)) })
	err := ss.talk(ctx)
	stop()
	cancel(err)
	tell := errors.Is(err, errExpired) || errors.Is(err, errReplaced) || errors.Is(err, errAged) || errors.Is(err, errRoots) || errors.Is(err, wire.ErrFrame)
	if tell {
		_ = ss.conn.SetDeadline(time.Now().Add(time.Second))
		s.hangUp(ss.conn, err)
	}
	_ = ss.conn.Close()
	<-done

	reason := "hung up"
	if err != nil && !errors.Is(err, io.EOF) {
		reason = err.Error()
	}
	s.mu.Lock()
	if n := s.nodes[ss.node]; n != nil && n.session == ss {
		n.session = nil
		n.status.Connected = time.Time{}
		n.status.Reason = reason
		if n.target == nil {
			delete(s.nodes, ss.node)
		}
	}
	s.mu.Unlock()
	s.o.Log.Info("proxy disconnected", "node", ss.node.String(), "reason", reason)
	s.o.OnEvent(Event{Kind: EventDisconnected, Node: ss.node, Reason: reason})
}

// talk sends what is due and takes the answers, until the stream ends.
func (ss *session) talk(ctx context.Context) error {
	beat := time.NewTicker(ss.s.o.Heartbeat)
	defer beat.Stop()
	expiry := time.NewTimer(time.Until(ss.expires))
	defer expiry.Stop()
	var aged <-chan time.Time
	if most := ss.s.o.MaxAge; most > 0 {
		// Anywhere in the second half: proxies that came together, because their replica ended, don't go together.
		t := time.NewTimer(most/2 + rand.N(most/2+1))
		defer t.Stop()
		aged = t.C
	}
	for {
		if ss.over != nil && ss.inflight == nil {
			return ss.over
		}
		if err := ss.push(); err != nil {
			return err
		}
		var again <-chan time.Time
		if !ss.due.IsZero() && ss.inflight == nil {
			again = time.After(time.Until(ss.due))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again:
			ss.tryAgain()
		case <-ss.wake:
		case r := <-ss.replies:
			if err := ss.answered(r); err != nil {
				return err
			}
		case <-expiry.C:
			return errExpired
		case <-aged:
			ss.over = errAged
		case now := <-beat.C:
			if ss.outdated(now) {
				ss.over = errRoots
			}
			if f := ss.inflight; f != nil && time.Since(f.sent) > ss.s.o.AckTimeout {
				return fmt.Errorf("it did not answer a change within %s", ss.s.o.AckTimeout)
			}
			frame, err := wire.AppendFrame(nil, wire.TypeHeartbeat, nil)
			if err != nil {
				return err
			}
			if err := ss.s.write(ss.conn, frame); err != nil {
				return fmt.Errorf("it does not read: %w", err)
			}
		}
	}
}

// outdated reports whether it is time to tell the proxy that its roots are not those in force.
func (ss *session) outdated(now time.Time) bool {
	if ss.bundle == (trust.Bundle{}) || ss.bundle == ss.s.o.Authority.Bundle() {
		ss.tell = time.Time{}
		return false
	}
	if ss.tell.IsZero() {
		ss.tell = now.Add(rand.N(ss.s.o.Spread))
	}
	return !now.Before(ss.tell)
}

// read takes frames off the connection. A peer that sends nothing for three heartbeats is dead.
func (ss *session) read() error {
	for {
		_ = ss.conn.SetReadDeadline(time.Now().Add(3 * ss.s.o.Heartbeat))
		t, body, err := ss.reader.Next(wire.MaxUpstream)
		if err != nil {
			return err
		}
		var r reply
		switch t {
		case wire.TypeHeartbeat:
			continue
		case wire.TypeAck:
			var ack wire.Ack
			err = wire.Decode(t, t, body, &ack)
			r.nonce = ack.Nonce
		case wire.TypeNack:
			r.nack = new(wire.Nack)
			err = wire.Decode(t, t, body, r.nack)
			r.nonce = r.nack.Nonce
		default:
			err = fmt.Errorf("%w: a proxy does not send a %s here", wire.ErrFrame, t)
		}
		if err != nil {
			return err
		}
		select {
		case ss.replies <- r:
		default:
			return fmt.Errorf("%w: more answers than deltas", wire.ErrFrame)
		}
	}
}

// push sends the difference between what the proxy has and what it should have, unless one is in flight.
func (ss *session) push() error {
	if ss.inflight != nil {
		return nil
	}
	s := ss.s
	s.mu.Lock()
	n := s.nodes[ss.node]
	if n == nil || n.session != ss || n.target == nil || ss.seen == n.target && !ss.trying {
		s.mu.Unlock()
		return nil
	}
	target := n.target
	s.mu.Unlock()

	if ss.aim != target {
		ss.aim, ss.held = target, ss.still(target)
		ss.trying = false
		if len(ss.held) == 0 {
			ss.due, ss.wait = time.Time{}, 0
		}
	}
	want := ss.effective(target.blobs)
	set, removed := diff(ss.known, want)
	if len(set) == 0 && len(removed) == 0 {
		ss.settle(target, want, false)
		return nil
	}
	ss.nonce++
	ss.inflight = &flight{target: target, want: want, sent: time.Now()}
	s.counters.pushes.Add(1)
	s.mu.Lock()
	n.status.Pushes++
	s.mu.Unlock()
	return ss.send(set, removed)
}

// effective is target without the versions that the proxy refused: in their place stands what it has, and beside it, where that
// turned out to be needed, what that refers to.
func (ss *session) effective(target []*blob) []*blob {
	if len(ss.held) == 0 {
		return target
	}
	want := make([]*blob, 0, len(target))
	older := false
	for _, b := range target {
		if h, ok := ss.held[b.piece.Ref]; ok && h.hash == b.piece.Hash {
			if i, ok := search(ss.known, b.piece.Ref); ok {
				want = append(want, ss.known[i])
				older = true
			}
			continue
		}
		want = append(want, b)
	}
	if !older || !ss.keeps {
		return want
	}
	for _, b := range ss.known {
		if isReferredTo(b.piece.Ref.Kind) && !has(target, b.piece.Ref) {
			want = append(want, b)
		}
	}
	slices.SortFunc(want, byRef)
	return want
}

// isReferredTo reports whether a piece of another kind may not be without those of a kind (wire.Check), which nobody minds having one
// more of.
func isReferredTo(k wire.Kind) bool {
	switch k {
	case wire.KindRoutes, wire.KindCluster, wire.KindEndpoints, wire.KindPolicy, wire.KindLimit:
		return true
	}
	return false
}

// send writes a delta, in as many frames as it needs.
func (ss *session) send(set []*blob, removed []wire.Ref) error {
	d := wire.Delta{Nonce: ss.nonce, Removed: removed}
	size := 0
	flush := func() error {
		frame, err := wire.AppendFrame(make([]byte, 0, size+size/8+256), wire.TypeDelta, &d)
		if err != nil {
			return err
		}
		ss.s.counters.pushed.Add(uint64(len(frame)))
		if err := ss.s.write(ss.conn, frame); err != nil {
			return fmt.Errorf("it does not read: %w", err)
		}
		d.Set, d.Removed, size = d.Set[:0], nil, 0
		return nil
	}
	for _, b := range set {
		if size > 0 && size+len(b.piece.Bytes) > wire.DeltaTarget {
			if err := flush(); err != nil {
				return err
			}
		}
		d.Set = append(d.Set, b.piece)
		size += len(b.piece.Bytes) + len(b.piece.Ref.Name)
	}
	d.Complete = true
	return flush()
}

// answered takes the answer to the delta in flight.
func (ss *session) answered(r reply) error {
	f := ss.inflight
	if f == nil || r.nonce != ss.nonce {
		return fmt.Errorf("%w: an answer to delta %d, which is not in flight", wire.ErrFrame, r.nonce)
	}
	ss.inflight = nil
	if r.nack == nil {
		ss.known = f.want
		ss.settle(f.target, f.want, true)
		return nil
	}
	ss.s.counters.nacks.Add(1)
	level := slog.LevelWarn
	if ss.trying {
		level = slog.LevelDebug // it was told, and the status has it
	}
	ss.s.o.Log.Log(context.Background(), level, "proxy rejected a change and keeps what it has", "node", ss.node.String(), "reason", r.nack.Reason, "rejected", wire.Summary(r.nack.Rejected))
	ss.s.o.OnEvent(Event{Kind: EventNack, Node: ss.node, Reason: r.nack.Reason, Rejected: r.nack.Rejected})
	// Hold back what it names, and send the rest again. Each round holds back at least one more piece of this target, or finds out
	// that what it has in the place of one needs what was to go, so it ends; a refusal that says nothing new refuses the whole target.
	progress := false
	for _, rej := range r.nack.Rejected {
		i, ok := search(f.want, rej.Ref)
		if !ok {
			continue
		}
		hash := f.want[i].piece.Hash
		h, ok := ss.held[rej.Ref]
		if ok && h.hash == hash {
			continue
		}
		if at, is := search(f.target.blobs, rej.Ref); ok && is && h.hash == f.target.blobs[at].piece.Hash {
			progress = progress || !ss.keeps
			ss.keeps = true
			continue
		}
		ss.held[rej.Ref] = heldBack{hash, rej.Reason}
		progress = true
	}
	if !progress {
		ss.putOff()
	}
	ss.s.mu.Lock()
	defer ss.s.mu.Unlock()
	if n := ss.s.nodes[ss.node]; n != nil && n.session == ss {
		n.status.Reason = r.nack.Reason
		n.status.Rejected = r.nack.Rejected
		if !progress {
			ss.seen, ss.stuck = f.target, true
		}
	}
	return nil
}

// tryAgain begins to send what was refused once more: a port may have been taken for a moment only, or the proxy have had no
// descriptors left. What can't be used whenever it comes costs little so seldom.
func (ss *session) tryAgain() {
	ss.due, ss.trying = time.Time{}, true
	clear(ss.held)
}

// putOff sets the time at which what was refused is sent once more, which other changes do not put off further.
func (ss *session) putOff() {
	ss.trying = false
	if !ss.due.IsZero() {
		return
	}
	ss.wait = min(max(2*ss.wait, ss.s.o.Again), max(maxAgain, ss.s.o.Again))
	ss.due = time.Now().Add(ss.wait)
}

// settle records that the proxy has of target what it will take. acked is false when there was nothing to send.
func (ss *session) settle(target *snapshot, want []*blob, acked bool) {
	s := ss.s
	now := time.Now()
	took := now.Sub(target.since)
	ss.known, ss.held = want, ss.still(target)
	ss.keeps = ss.keeps && len(ss.held) > 0
	if len(ss.held) > 0 {
		ss.putOff()
	} else {
		ss.due, ss.wait, ss.trying = time.Time{}, 0, false
	}
	var rejected []wire.Rejection
	for _, b := range target.blobs {
		if h, ok := ss.held[b.piece.Ref]; ok {
			rejected = append(rejected, wire.Rejection{Ref: b.piece.Ref, Reason: h.reason})
		}
	}
	s.mu.Lock()
	ss.seen, ss.stuck = target, false
	if n := s.nodes[ss.node]; n != nil && n.session == ss {
		n.status.Rejected = rejected
		if len(rejected) == 0 {
			n.status.Reason = ""
		}
		n.status.Acked = now
		if acked {
			n.status.Took = took
		}
	}
	s.mu.Unlock()
	if acked {
		s.counters.converged(took)
		s.o.OnEvent(Event{Kind: EventAck, Node: ss.node, Took: took})
	}
}

// still returns what is held back that target has: not what went, or of which there is a newer version.
func (ss *session) still(target *snapshot) map[wire.Ref]heldBack {
	held := make(map[wire.Ref]heldBack)
	for ref, h := range ss.held {
		if i, ok := search(target.blobs, ref); ok && target.blobs[i].piece.Hash == h.hash {
			held[ref] = h
		}
	}
	return held
}
