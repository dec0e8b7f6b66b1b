// Package dns answers the queries of a program for names that only the mesh knows, and asks the system's resolvers for all
// others.
//
// In come queries that the kernel redirects to the proxy (plan.Capture.DNS), by UDP and TCP; out go answers with the addresses
// of a plan's names, or what a resolver said, with nothing changed but its number. Nothing is cached or followed: a CNAME is
// the business of who asked. What comes from resolvers is believed when it comes from the address that was asked, to the port
// that asked, with the number and the question of the query (RFC 5452); ports and numbers are the kernel's and ours by chance.
//
// Bounds: queries at a time (others are told SERVFAIL), 5 s for each, connections and their idle time. An answer in a packet is
// never longer than its client said it may be.
//
// ServePackets and ServeStreams own the goroutines of their queries and wait for them.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Bounds.
const (
	timeout     = 5 * time.Second // of a query, all resolvers together
	tryTime     = 2 * time.Second // of one resolver
	streamIdle  = 10 * time.Second
	lastQuery   = 500 * time.Millisecond // for the first query of a connection when the server closes
	mostQueries = 512
	mostStreams = 128
	strayAnswer = 32 // packets that are no answer to the query, after which it fails
	confEvery   = 5 * time.Second
)

// Options are what a Server needs from outside.
type Options struct {
	Log *slog.Logger // nil: nothing is logged
	// Resolvers are asked for names that are not known here; nil: those of Conf.
	Resolvers []netip.AddrPort
	Conf      string // resolv.conf(5), "" the system's
}

// Server answers queries. It is safe for concurrent use.
type Server struct {
	o       Options
	names   atomic.Pointer[Names]
	queries chan struct{} // places
	streams chan struct{}
	ctx     context.Context // ends when Close is called: what is under way ends itself
	end     context.CancelFunc

	mu     sync.Mutex
	asking map[port]int // of our own queries
	conf   []netip.AddrPort
	looked time.Time
}

// port is a local one.
type port struct {
	network string // udp or tcp: each has its own ports
	number  uint16
}

// New returns a Server that knows no names.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Conf == "" {
		o.Conf = "/etc/resolv.conf"
	}
	s := &Server{o: o, queries: make(chan struct{}, mostQueries), streams: make(chan struct{}, mostStreams), asking: make(map[port]int)}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s
}

// SetNames puts names in force.
func (s *Server) SetNames(n *Names) { s.names.Store(n) }

// Close makes the Serve functions return once what was asked is answered.
func (s *Server) Close() { s.end() }

// ServePackets answers queries in packets until Close, and then closes c.
func (s *Server) ServePackets(c *net.UDPConn) {
	stop := context.AfterFunc(s.ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	var each sync.WaitGroup
	defer func() {
		stop()
		each.Wait()
		_ = c.Close()
	}()
	buf := make([]byte, longest)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		switch {
		case err != nil && (errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil):
			return // what was read is answered, though
		case err != nil:
			time.Sleep(5 * time.Millisecond) // an error that is about one answer (ICMP), or about memory
			continue
		case s.isOurs(port{"udp", from.Port()}):
			s.o.Log.Debug("a query of the proxy itself came back: its traffic is captured, too", "from", from)
			continue
		}
		q, v, code := s.look(buf[:n])
		switch v {
		case drop:
		case refuse:
			s.send(c, from, q.failure(code))
		case here:
			s.send(c, from, q.answer(q.room))
		case forward:
			select {
			case s.queries <- struct{}{}:
			default:
				s.send(c, from, q.failure(dnsmessage.RCodeServerFailure))
				continue
			}
			msg := slices.Clone(buf[:n])
			each.Go(func() {
				defer func() { <-s.queries }()
				s.send(c, from, fit(s.ask(msg, &q, "udp"), &q, q.room))
			})
		}
	}
}

func (s *Server) send(c *net.UDPConn, to netip.AddrPort, msg []byte) {
	if msg != nil {
		_, _ = c.WriteToUDPAddrPort(msg, to)
	}
}

// look reads a query and finds out who answers it.
func (s *Server) look(msg []byte) (query, verdict, dnsmessage.RCode) {
	q, v, code := read(msg)
	if v != forward || q.question.Class != dnsmessage.ClassINET {
		return q, v, code
	}
	switch q.question.Type {
	case dnsmessage.TypeA, dnsmessage.TypeAAAA, typeHTTPS, typeSVCB:
		if q.known = s.names.Load().find(q.name); q.known != nil { // once: the next plan may not have it
			v = here
		}
	}
	return q, v, code
}

// ServeStreams answers queries over TCP until Close, and then closes ln.
func (s *Server) ServeStreams(ln *net.TCPListener) {
	stop := context.AfterFunc(s.ctx, func() { _ = ln.SetDeadline(time.Unix(1, 0)) })
	var each sync.WaitGroup
	defer func() {
		stop()
		_ = ln.Close()
		each.Wait()
	}()
	for {
		c, err := ln.AcceptTCP()
		switch {
		case err != nil && (errors.Is(err, net.ErrClosed) || s.ctx.Err() != nil):
			return
		case err != nil:
			time.Sleep(5 * time.Millisecond)
			continue
		}
		select {
		case s.streams <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		each.Go(func() {
			defer func() { <-s.streams }()
			defer func() { _ = c.Close() }()
			s.serveStream(c)
		})
	}
}

// serveStream answers the queries of a connection one after the other (RFC 7766). Who connected before Close may still ask once.
func (s *Server) serveStream(c *net.TCPConn) {
	from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	for answered := false; ; answered = true {
		_ = c.SetDeadline(time.Now().Add(streamIdle))
		stop := context.AfterFunc(s.ctx, func() {
			if answered {
				_ = c.SetReadDeadline(time.Unix(1, 0))
			} else {
				_ = c.SetReadDeadline(time.Now().Add(lastQuery))
			}
		})
		msg, err := readStream(c)
		stop()
		if err != nil || s.isOurs(port{"tcp", from.Port()}) { // not before: we know of a connection of ours a moment after it is accepted
			return
		}
		q, v, code := s.look(msg)
		var answer []byte
		switch v {
		case refuse:
			answer = q.failure(code)
		case here:
			answer = q.answer(longest)
		case forward:
			select {
			case s.queries <- struct{}{}:
				answer = s.ask(msg, &q, "tcp")
				<-s.queries
			default:
				answer = q.failure(dnsmessage.RCodeServerFailure)
			}
		}
		if answer == nil || writeStream(c, answer) != nil {
			return
		}
	}
}

func readStream(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeStream(w io.Writer, msg []byte) error {
	if len(msg) > longest {
		return errors.New("too long")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...))
	return err
}

// ask asks the resolvers, one after the other, and returns what the first says that says anything; SERVFAIL when none does.
func (s *Server) ask(msg []byte, q *query, network string) []byte {
	id := uint16(rand.Uint32())
	binary.BigEndian.PutUint16(msg, id)
	end := time.Now().Add(timeout)
	servers := s.resolvers()
	var last error
	for i := 0; i < 2*len(servers) && time.Now().Before(end); i++ {
		by := time.Now().Add(tryTime)
		if by.After(end) {
			by = end
		}
		answer, err := s.askOne(msg, id, q, network, servers[i%len(servers)], by)
		if err == nil {
			binary.BigEndian.PutUint16(answer, q.header.ID)
			return answer
		}
		last = err
	}
	s.o.Log.Debug("no resolver answers", "name", q.name, "resolvers", len(servers), "error", last)
	return q.failure(dnsmessage.RCodeServerFailure)
}

var errStray = errors.New("what came were no answers to the query")

// askOne asks one resolver from a socket of its own: each query has another port.
func (s *Server) askOne(msg []byte, id uint16, q *query, network string, server netip.AddrPort, by time.Time) ([]byte, error) {
	d := net.Dialer{Deadline: by}
	c, err := d.Dial(network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	forget := s.remember(network, c.LocalAddr())
	defer forget()
	_ = c.SetDeadline(by)
	if network == "tcp" {
		if err := writeStream(c, msg); err != nil {
			return nil, err
		}
		answer, err := readStream(c)
		if err == nil && !matches(answer, id, q) {
			err = errStray
		}
		return answer, err
	}
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, mostSize+1)
	for range strayAnswer {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if matches(buf[:n], id, q) {
			return buf[:n], nil
		}
	}
	return nil, errStray
}

// remember keeps the port of a query of ours, by which one that comes back here is told.
func (s *Server) remember(network string, local net.Addr) (forget func()) {
	ap, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return func() {}
	}
	p := port{network, ap.Port()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking[p]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.asking[p]--; s.asking[p] == 0 {
			delete(s.asking, p)
		}
	}
}

func (s *Server) isOurs(p port) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asking[p] > 0
}

// resolvers returns those of the system, read again every few seconds, as the file may change.
func (s *Server) resolvers() []netip.AddrPort {
	if s.o.Resolvers != nil {
		return s.o.Resolvers
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.looked.IsZero() && time.Since(s.looked) < confEvery {
		return s.conf
	}
	s.looked = time.Now()
	b, err := os.ReadFile(s.o.Conf)
	if err != nil {
		s.o.Log.Warn("names that the mesh does not know can't be resolved", "error", err)
		return s.conf
	}
	s.conf = readConf(string(b))
	return s.conf
}

// readConf returns the servers of a resolv.conf(5), of which resolvers use three at most.
func readConf(conf string) []netip.AddrPort {
	var servers []netip.AddrPort
	for line := range strings.Lines(conf) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" || len(servers) == 3 {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return servers
}
