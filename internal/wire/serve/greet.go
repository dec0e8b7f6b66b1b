package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/wire"
)

// serve is one connection from start to end.
func (s *Server) serve(ctx context.Context, nc net.Conn) {
	conn, err := s.handshake(ctx, nc)
	if err != nil {
		s.counters.refused.Add(1)
		if ctx.Err() == nil && !errors.Is(err, io.EOF) {
			s.o.Log.Info("handshake with a proxy failed", "remote", nc.RemoteAddr().String(), "error", err)
		}
		return
	}
	cs := conn.ConnectionState()
	limit := wire.MaxGreeting
	if len(cs.PeerCertificates) > 0 {
		limit = wire.MaxUpstream
	}
	reader := wire.NewReader(conn)
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() }) // nobody waits for who says nothing when the server ends
	t, body, err := reader.Next(limit)
	if waited := stop(); err != nil || !waited { // stopped in any case: ctx is the server's, and would keep the connection as long
		return // it left, or said nothing we understand; both ends have a deadline
	}
	_ = nc.SetDeadline(time.Time{})
	switch t {
	case wire.TypeSignRequest:
		var req wire.SignRequest
		if err = wire.Decode(t, wire.TypeSignRequest, body, &req); err == nil {
			err = s.sign(ctx, conn, cs, &req)
		}
	case wire.TypeHello:
		var hello wire.Hello
		if err = wire.Decode(t, wire.TypeHello, body, &hello); err == nil {
			err = s.stream(ctx, conn, reader, cs, &hello)
		}
	default:
		err = fmt.Errorf("%w: a connection cannot begin with a %s", wire.ErrFrame, t)
	}
	if err != nil && ctx.Err() == nil {
		s.refuse(conn, err)
	}
}

// handshake waits for its turn: a handshake costs signatures, and strangers can ask for as many as they like.
func (s *Server) handshake(ctx context.Context, nc net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.HandshakeTimeout)
	defer cancel()
	select {
	case s.hands <- struct{}{}:
		defer func() { <-s.hands }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	_ = nc.SetDeadline(time.Now().Add(s.o.HandshakeTimeout)) // also for the first message
	conn := tls.Server(nc, s.tls)
	return conn, conn.HandshakeContext(ctx)
}

// refuse tells the proxy why, as the last thing on the connection.
func (s *Server) refuse(conn net.Conn, cause error) {
	s.counters.refused.Add(1)
	s.o.Log.Info("proxy refused", "remote", conn.RemoteAddr().String(), "error", cause)
	s.hangUp(conn, cause)
}

// hangUp says why the connection ends; who doesn't listen isn't told twice.
func (s *Server) hangUp(conn net.Conn, cause error) {
	frame, err := wire.AppendFrame(nil, wire.TypeRefusal, &wire.Refusal{
		Reason: cause.Error(), Final: errors.Is(cause, ca.ErrToken),
		Again: errors.Is(cause, errAged) || errors.Is(cause, errRoots) || errors.Is(cause, errExpired), Renew: errors.Is(cause, errRoots),
	})
	if err != nil {
		return
	}
	_ = s.write(conn, frame)
}

func (s *Server) write(conn net.Conn, frame []byte) error {
	_ = conn.SetWriteDeadline(time.Now().Add(s.o.WriteTimeout))
	_, err := conn.Write(frame)
	return err
}

// sign answers a signing request.
func (s *Server) sign(ctx context.Context, conn net.Conn, cs tls.ConnectionState, req *wire.SignRequest) error {
	w, err := s.authenticate(ctx, cs, req.Token)
	if err != nil {
		return err
	}
	if s.o.Admit != nil {
		if err := s.o.Admit(w); err != nil {
			return fmt.Errorf("no certificate for %s (%s): %w", w.Node, w.Identity.URI(), err)
		}
	}
	chain, err := s.o.Authority.Sign(req.CSR, w)
	if err != nil {
		return err
	}
	frame, err := wire.AppendFrame(nil, wire.TypeSignResponse, &wire.SignResponse{Chain: chain, Roots: s.o.Authority.Roots()})
	if err != nil {
		return err
	}
	if err := s.write(conn, frame); err == nil {
		s.counters.signed.Add(1)
		s.o.Log.Debug("certificate signed", "identity", w.Identity.URI(), "node", w.Node.String())
	}
	return nil
}

// authenticate says who asks for a certificate: whoever the token is of, or else the proxy whose certificate, still
// valid, opened the connection. The latter gets the same again and nothing more.
func (s *Server) authenticate(ctx context.Context, cs tls.ConnectionState, token string) (ca.Workload, error) {
	if token != "" {
		if s.o.Authenticator == nil {
			return ca.Workload{}, fmt.Errorf("%w: this control plane takes none", ca.ErrToken)
		}
		return s.o.Authenticator.Authenticate(ctx, token)
	}
	if len(cs.PeerCertificates) == 0 {
		return ca.Workload{}, fmt.Errorf("%w: neither a token nor a certificate was shown", ca.ErrToken)
	}
	id, labels, err := trust.PeerOf(cs)
	if err != nil {
		return ca.Workload{}, err
	}
	node, err := trust.NodeOf(cs)
	if err != nil {
		return ca.Workload{}, err
	}
	if node.IsZero() {
		return ca.Workload{}, fmt.Errorf("%w: the certificate of %s names no proxy", ca.ErrToken, id.URI())
	}
	return ca.Workload{Node: node, Identity: id, Labels: labels}, nil
}

// stream admits a proxy and talks to it until one of them hangs up. The error is for the proxy.
func (s *Server) stream(ctx context.Context, conn net.Conn, reader *wire.Reader, cs tls.ConnectionState, hello *wire.Hello) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("a plan is only for a proxy that shows its certificate")
	}
	id, _, err := trust.PeerOf(cs)
	if err != nil {
		return err
	}
	node, err := trust.NodeOf(cs)
	if err != nil {
		return err
	}
	// A plan names what a workload may reach and who may reach it: nobody reads another's.
	if node.IsZero() || node != hello.Node {
		return fmt.Errorf("the certificate of %s is of proxy %s and does not open the plan of %s", id.URI(), node, hello.Node)
	}
	known := make([]*blob, len(hello.Have))
	for i, h := range hello.Have {
		known[i] = &blob{piece: wire.Piece{Ref: h.Ref, Hash: h.Hash}}
	}
	slices.SortFunc(known, byRef)
	known = slices.CompactFunc(known, func(a, b *blob) bool { return a.piece.Ref == b.piece.Ref })
	ss := &session{
		s: s, conn: conn, reader: reader, node: node, known: known,
		wake: make(chan struct{}, 1), replies: make(chan reply, 1),
		expires: cs.PeerCertificates[0].NotAfter, bundle: trust.Bundle(hello.Bundle), held: make(map[wire.Ref]heldBack),
	}
	status := ProxyStatus{
		Node: node, Role: hello.Role, Identity: id, Version: hello.Version, Remote: conn.RemoteAddr().String(), Connected: time.Now(), Expires: ss.expires,
	}
	ss.run(ctx, status)
	return nil
}
