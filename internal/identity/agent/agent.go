// Package agent obtains a proxy's certificate and keeps it fresh.
//
// In: the control plane's address, the roots to verify it by, a token that says who the proxy is. Out: credentials in a
// trust.Holder, replaced when about half of their life is over, long before anybody notices. The key is made here and never
// travels; only its public half does, in a signing request.
//
// Agent.Run is the one goroutine, owned by whoever calls it. A signing request has a connection of its own (ALPN "malha/1", the port
// of the control stream), so renewing works while the stream is down and the other way round.
//
// With a state directory the key and the certificate are kept on disk (mode 0600), so that a proxy that restarts while the
// control plane is away still has an identity. Without one they live in memory only.
//
// Neighbours: wire/serve and identity/ca are the other side; wire/watch runs an agent beside its stream; everybody who
// speaks mesh TLS reads the Holder.
package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/wire"
)

// Options are what an agent needs. Addr (or Dial), Node and RootsFile must be set.
type Options struct {
	Addr      string     // host:port of the control plane
	Node      ident.Name // the proxy; a certificate for another one is refused
	RootsFile string     // PEM bundle to verify the control plane by; read anew for each request
	TokenFile string     // who we are; read anew for each request. "": only a kept certificate can prove it
	StateDir  string     // where key and certificate are kept, "" nowhere
	// TrustDomain is that of the control plane; default ident.DefaultTrustDomain.
	TrustDomain string
	// Holder receives the credentials; default a new one.
	Holder *trust.Holder
	Log    *slog.Logger
	// Dial connects to the control plane; default TCP to Addr.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Times of the agent.
const (
	requestTimeout = 10 * time.Second
	backoffMin     = 200 * time.Millisecond
	// backoffMax is for a control plane that answers and refuses: each try costs it a handshake, and perhaps a question to others.
	backoffMax = 30 * time.Second
	// firstMax is the same as long as there is no certificate that is valid: a workload waits for it.
	firstMax = 5 * time.Second
	// unreachedMax is for a control plane that isn't there: a try costs nobody anything.
	unreachedMax = 2 * time.Second
	// glance is how often the clock is looked at while nothing is to be done.
	glance = 30 * time.Second
)

// errUnreached says that nobody answered at the control plane's address.
var errUnreached = errors.New("connecting to the control plane")

// Agent obtains and renews credentials.
type Agent struct {
	o     Options
	now   func() time.Time
	ready chan struct{} // closed by Run when there are credentials
	renew chan struct{} // Renew was called

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever Current changes
}

// New returns an agent. It does nothing before Run.
func New(o Options) *Agent {
	if o.TrustDomain == "" {
		o.TrustDomain = ident.DefaultTrustDomain
	}
	if o.Holder == nil {
		o.Holder = new(trust.Holder)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", o.Addr)
		}
	}
	return &Agent{o: o, now: time.Now, ready: make(chan struct{}), renew: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Current returns the credentials in force, nil before there are any.
func (a *Agent) Current() *trust.Credentials { return a.o.Holder.Current() }

// Ready is closed when there are credentials.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Changed returns a channel that is closed when Current changes next.
func (a *Agent) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// Renew asks for new credentials now instead of at half of their life: somebody refused them, or the control plane could not be
// verified by the roots that came with them, so there may be a new root.
func (a *Agent) Renew() {
	select {
	case a.renew <- struct{}{}:
	default:
	}
}

// Run obtains credentials and renews them until ctx ends. It tries for ever: a control plane that refuses now may be told
// otherwise later. It returns ctx's error.
func (a *Agent) Run(ctx context.Context) error {
	// A kept certificate bridges the time without a control plane; a new one is asked for at once all the same, for the
	// control plane may have another root by now.
	if c := a.load(); c != nil {
		a.install(c)
		a.o.Log.Info("identity restored from disk", "credentials", c)
	}
	var next time.Duration
	for failures := 0; ; {
		if err := a.sleep(ctx, next); err != nil {
			return err
		}
		c, err := a.obtain(ctx)
		switch {
		case err == nil:
			failures = 0
			a.install(c)
			next = renewAfter(c, time.Now())
			a.o.Log.Debug("certificate obtained", "credentials", c, "renew_in", next)
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			next = backoff(failures, err, a.Current(), time.Now())
			failures++
			a.o.Log.Warn("no certificate could be obtained, will try again", "error", err, "in", next, "current", a.Current())
		}
	}
}

func (a *Agent) install(c *trust.Credentials) {
	a.o.Holder.Set(c)
	a.mu.Lock()
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	select {
	case <-a.ready:
	default:
		close(a.ready)
	}
}

// renewAfter returns when to renew: at half of what is left of c's life, give or take a tenth, so that proxies that were
// started together do not come back together.
func renewAfter(c *trust.Credentials, now time.Time) time.Duration {
	return time.Duration(float64(c.NotAfter.Sub(now)) * (0.45 + 0.1*mathrand.Float64()))
}

// backoff returns how long to wait after a failure: doubling with jitter, but never so long that the certificate that we
// have runs out while we wait.
func backoff(failures int, err error, c *trust.Credentials, now time.Time) time.Duration {
	most, valid := backoffMax, c != nil && now.Before(c.NotAfter)
	switch {
	case errors.Is(err, errUnreached):
		most = unreachedMax
	case !valid:
		most = firstMax
	}
	d := min(backoffMin<<min(failures, 10), most)
	if valid {
		d = min(d, max(c.NotAfter.Sub(now)/8, backoffMin/2))
	}
	return d/2 + mathrand.N(d/2)
}

// sleep waits for d of the clock on the wall, by which certificates end. The one of timers stands still while a machine sleeps: by
// that alone, who wakes in the morning would have a certificate that is over, and would not mind until the evening.
func (a *Agent) sleep(ctx context.Context, d time.Duration) error {
	for until := a.now().Round(0).Add(d); ; {
		t := time.NewTimer(min(until.Sub(a.now().Round(0)), glance))
		select {
		case <-a.renew:
			t.Stop()
			return nil
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		if !a.now().Round(0).Before(until) {
			return nil
		}
	}
}

// obtain makes a new key and has it certified. The key is new each time: a key that leaked is of use for one lifetime.
func (a *Agent) obtain(ctx context.Context) (*trust.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a signing request: %w", err)
	}
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	resp, err := a.request(ctx, token, csr)
	// A token lives for minutes or until the control plane restarts, a certificate proves the same for as long as it is
	// valid: when the token is refused, ask again without it.
	if refusal := new(wire.Refusal); errors.As(err, &refusal) && token != "" && a.valid() {
		if again, againErr := a.request(ctx, "", csr); againErr == nil {
			resp, err = again, nil
		}
	}
	if err != nil {
		return nil, err
	}
	c, err := a.accept(resp, key)
	if err != nil {
		return nil, err
	}
	a.keep(c, key, resp.Roots)
	return c, nil
}

// valid reports whether we have a certificate that can prove who we are.
func (a *Agent) valid() bool {
	c := a.Current()
	return c != nil && time.Now().Before(c.NotAfter)
}

func (a *Agent) token() (string, error) {
	if a.o.TokenFile == "" {
		if !a.valid() {
			return "", errors.New("there is neither a token nor a valid certificate to prove who this proxy is: give it a token file")
		}
		return "", nil
	}
	b, err := os.ReadFile(a.o.TokenFile)
	if err != nil {
		if a.valid() {
			return "", nil // the certificate will do
		}
		return "", fmt.Errorf("reading the token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (a *Agent) request(ctx context.Context, token string, csr []byte) (*wire.SignResponse, error) {
	roots, err := ReadRoots(a.o.RootsFile)
	if err != nil {
		return nil, err
	}
	// The control plane is verified by the roots from the file. Our own certificate goes along only where it is the
	// proof: one that an older root signed would have the handshake refused, and the token never read.
	self := &trust.Credentials{Roots: roots}
	if token == "" && a.valid() {
		self.Certificate = a.Current().Certificate
	}
	expect := []ident.Identity{wire.ControlPlane(a.o.TrustDomain)}
	nc, err := a.o.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreached, err)
	}
	defer func() { _ = nc.Close() }()
	if d, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(d)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	conn := tls.Client(nc, trust.ClientConfig(trust.Static{Credentials: self}, expect, "", []string{wire.ALPN}))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake with the control plane: %w", err)
	}
	frame, err := wire.AppendFrame(nil, wire.TypeSignRequest, &wire.SignRequest{CSR: csr, Token: token})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(frame); err != nil {
		return nil, fmt.Errorf("asking for a certificate: %w", err)
	}
	t, body, err := wire.NewReader(conn).Next(wire.MaxGreeting)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("waiting for a certificate: %w", err)
	}
	if t == wire.TypeRefusal {
		refusal := new(wire.Refusal)
		if err := wire.Decode(t, wire.TypeRefusal, body, refusal); err != nil {
			return nil, err
		}
		return nil, refusal
	}
	resp := new(wire.SignResponse)
	return resp, wire.Decode(t, wire.TypeSignResponse, body, resp)
}

// accept checks that the answer is a certificate for our key and our node that the roots in it vouch for.
func (a *Agent) accept(resp *wire.SignResponse, key *ecdsa.PrivateKey) (*trust.Credentials, error) {
	pool := x509.NewCertPool()
	for _, der := range resp.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the control plane sent a root that cannot be read: %w", err)
		}
		pool.AddCert(root)
	}
	c, err := trust.New(tls.Certificate{Certificate: resp.Chain, PrivateKey: key}, pool, time.Now())
	if err != nil {
		return nil, fmt.Errorf("the control plane sent a certificate that cannot be used: %w", err)
	}
	c.Bundle = trust.BundleOf(resp.Roots)
	if !key.PublicKey.Equal(c.Certificate.Leaf.PublicKey) {
		return nil, errors.New("the control plane sent a certificate for another key")
	}
	if c.Node != a.o.Node {
		return nil, fmt.Errorf("the token is of proxy %s, but this is %s: give each proxy its own token", c.Node, a.o.Node)
	}
	return c, nil
}

// ReadRoots reads a PEM bundle of certificates.
func ReadRoots(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the roots: %w", err)
	}
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("roots in %s: %w", path, err)
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	return pool, nil
}
