package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Defaults of plan.HealthCheck.
const (
	defaultCheckInterval  = 10 * time.Second
	defaultCheckTimeout   = time.Second
	defaultCheckUnhealthy = 3
	defaultCheckHealthy   = 2
	checksAtOnce          = 16 // of all clusters
	checkAgent            = "malha-health-check"
)

// checks asks the endpoints of a cluster how they are. One goroutine keeps the times, each check has one of its own; all are
// the Set's.
type checks struct {
	core *core
	plan *plan.HealthCheck
	quit chan struct{}
	kick chan struct{} // looks again
	once sync.Once

	mu   sync.Mutex
	seen map[*Endpoint]*checked
}

// checked is what is known of an endpoint.
type checked struct {
	due  time.Time
	busy bool
	good uint32 // in a row
	bad  uint32
}

// check begins, goes on or ends checks as a plan says. c.mu is held.
func (c *core) check(p *plan.Cluster) {
	if c.checks != nil && p.Check != nil && reflect.DeepEqual(c.checks.plan, p.Check) {
		select {
		case c.checks.kick <- struct{}{}: // there may be new endpoints
		default:
		}
		return
	}
	c.checks.stop()
	c.checks = nil
	well := false
	for _, e := range c.endpoints {
		well = e.sick.Swap(false) || well
	}
	if well {
		c.again()
	}
	if p.Check == nil {
		return
	}
	k := &checks{core: c, plan: p.Check, quit: make(chan struct{}), kick: make(chan struct{}, 1), seen: make(map[*Endpoint]*checked)}
	if c.set.spawn(k.run) {
		c.checks = k
	}
}

// stop ends the checks; k may be nil.
func (k *checks) stop() {
	if k != nil {
		k.once.Do(func() { close(k.quit) })
	}
}

func (k *checks) interval() time.Duration {
	if d := k.plan.Interval.D(); d > 0 {
		return d
	}
	return defaultCheckInterval
}

// run starts checks when they are due. The first comes soon, at a random time; later ones have a tenth of jitter.
func (k *checks) run() {
	s := k.core.set
	interval := k.interval()
	for {
		st := k.core.state.Load()
		now := s.now()
		next := interval
		k.mu.Lock()
		seen := make(map[*Endpoint]*checked, len(st.endpoints))
		for _, e := range st.endpoints {
			ck := k.seen[e]
			if ck == nil {
				ck = &checked{due: now.Add(rand.N(min(interval, time.Second)))}
			}
			seen[e] = ck
			if !now.Before(ck.due) {
				ck.due = now.Add(interval*9/10 + rand.N(interval/5+1))
				if !ck.busy {
					ck.busy = s.spawn(func() { k.one(e, ck) })
				}
			}
			next = min(next, ck.due.Sub(now))
		}
		k.seen = seen
		k.mu.Unlock()
		timer := time.NewTimer(max(next, time.Millisecond))
		select {
		case <-timer.C:
		case <-k.kick:
			timer.Stop()
		case <-k.quit:
			timer.Stop()
			return
		case <-s.ended:
			timer.Stop()
			return
		}
	}
}

// one makes one check.
func (k *checks) one(e *Endpoint, ck *checked) {
	s := k.core.set
	var err error
	select {
	case s.checking <- struct{}{}:
		timeout := k.plan.Timeout.D()
		if timeout <= 0 {
			timeout = defaultCheckTimeout
		}
		ctx, cancel := context.WithTimeout(s.live, timeout)
		err = k.ask(ctx, e)
		cancel()
		<-s.checking
	case <-k.quit:
		return
	case <-s.ended:
		return
	}
	if s.live.Err() != nil {
		return
	}
	k.mu.Lock()
	ck.busy = false
	if err == nil {
		ck.good, ck.bad = ck.good+1, 0
	} else {
		ck.good, ck.bad = 0, ck.bad+1
	}
	unhealthy, healthy := k.plan.Unhealthy, k.plan.Healthy
	if unhealthy == 0 {
		unhealthy = defaultCheckUnhealthy
	}
	if healthy == 0 {
		healthy = defaultCheckHealthy
	}
	sick, well := ck.bad >= unhealthy, ck.good >= healthy
	k.mu.Unlock()
	switch {
	case sick && !e.sick.Load():
		k.turn(e, true, err)
	case well && e.sick.Load():
		k.turn(e, false, nil)
	}
}

// turn makes an endpoint sick or well.
func (k *checks) turn(e *Endpoint, sick bool, why error) {
	c := k.core
	c.counted.checkTurns.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.checks != k || c.endpoints[e.key] != e {
		return
	}
	e.sick.Store(sick)
	if sick {
		e.why = "health check: " + why.Error()
		c.set.log.Warn("endpoint fails its health check", "cluster", c.name, "endpoint", e.Address(), "why", why)
	} else {
		e.why = ""
		e.born = c.set.now() // it warms up again
		c.set.log.Info("endpoint is healthy again", "cluster", c.name, "endpoint", e.Address())
	}
	c.again()
}

// ask asks an endpoint how it is.
func (k *checks) ask(ctx context.Context, e *Endpoint) error {
	c := k.core
	st := c.state.Load()
	c.counted.checks.Add(1)
	err := k.exchange(ctx, st, e)
	if err != nil {
		c.counted.checksFailed.Add(1)
	}
	if err != nil && ctx.Err() == context.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, stream.ErrDeadline) {
		err = errors.New("no answer in time")
	}
	return err
}

func (k *checks) exchange(ctx context.Context, st *state, e *Endpoint) error {
	p := k.plan
	a := &Attempt{Host: []byte(p.Host)}
	open := func(alpn string) (net.Conn, error) {
		if p.Port == 0 {
			return e.open(ctx, st, a, alpn)
		}
		host := "127.0.0.1" // beside a unix socket
		if !strings.HasPrefix(e.Address(), plan.UnixPrefix) {
			var err error
			if host, _, err = net.SplitHostPort(e.Address()); err != nil {
				return nil, err
			}
		}
		nc, err := k.core.set.dial(ctx, net.JoinHostPort(host, strconv.Itoa(p.Port)))
		if err != nil || !p.TLS {
			return nc, err // a port that is for probes alone speaks no mesh TLS
		}
		return unverified(ctx, nc, p.Host)
	}
	if p.Path == "" && !p.GRPC {
		nc, err := open(trust.ALPNOpaque)
		if err != nil {
			return err
		}
		return nc.Close()
	}
	h2 := p.GRPC || p.Port == 0 && st.http2(a, e)
	alpn := trust.ALPNHTTP1
	if h2 {
		alpn = trust.ALPNHTTP2
	}
	nc, err := open(alpn)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })() // also when the Set is closed meanwhile
	var up stream.Upstream
	if h2 {
		client := conn.NewH2Client(nc, st.conn)
		if !k.core.set.spawn(func() { _ = client.Run() }) {
			_ = nc.Close()
			return ErrClosed
		}
		defer func() { <-client.Done() }()
		defer client.CloseConn()
		if up, err = client.Open(); err != nil {
			return err
		}
	} else {
		client := conn.NewH1Client(nc, st.conn, func(c *conn.H1Client, _ bool) { c.CloseConn() })
		client.Begin()
		up = client
	}
	defer up.Close()
	if d, ok := ctx.Deadline(); ok {
		up.SetReadDeadline(d)
	}
	if p.GRPC {
		return stream.AskHealth(up, "health", "health", checkAgent, p.Host)
	}
	host := p.Host
	if host == "" {
		host = e.Host()
	}
	r := &message.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte(host), Host: []byte(host), Path: []byte(p.Path), Major: 1, Minor: 1}
	if p.TLS {
		r.Scheme = []byte("https")
	}
	for _, f := range p.Headers {
		r.Fields.Add(f.Name, []byte(f.Value))
	}
	if _, given := r.Fields.Get("user-agent"); !given {
		r.Fields.Add("user-agent", []byte(checkAgent))
	}
	resp, err := stream.Ask(up, r, nil)
	if err == nil && (resp.Status < 200 || resp.Status > 399) {
		err = fmt.Errorf("status %d", resp.Status)
	}
	return err
}

// unverified begins TLS with a program that is asked how it is: whoever has the port is believed, as kubelet does it. Nothing but the
// probe goes there.
func unverified(ctx context.Context, nc net.Conn, host string) (net.Conn, error) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	tc := tls.Client(nc, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}) //nolint:gosec // see above
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return tc, nil
}
