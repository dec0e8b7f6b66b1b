// Package inquiry asks the application beside the proxy whether it is well, in place of the kubelet.
//
// In: a probe of the Set that the injector wrote. Out: what to tell the kubelet, and why. It asks over loopback, which is
// not captured, as the kubelet would have asked: a GET that follows redirects to the same host, a TCP connection, or the
// gRPC health protocol. It uses the proxy's own HTTP engine. Each question ends within its time; the goroutine of an
// HTTP/2 connection is waited for.
package inquiry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/probe"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

const (
	mostRedirects = 10       // as the kubelet's client
	mostBody      = 10 << 10 // of an answer that is read; the kubelet shows as much in an event
)

// Asker asks.
type Asker struct {
	set  probe.Set
	cfg  *conn.Config
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	host string // of requests whose probe names none
}

// New returns an Asker of a Set. podIP is what the kubelet would have named as host; "" means localhost.
func New(set probe.Set, podIP string) *Asker {
	d := &net.Dialer{}
	d.SetMultipathTCP(false)
	cfg := conn.Defaults()
	if podIP == "" {
		podIP = "localhost"
	}
	return &Asker{set: set, cfg: cfg, dial: d.DialContext, host: podIP}
}

// Has reports whether a path asks something.
func (a *Asker) Has(path string) bool {
	_, ok := a.set[path]
	return ok
}

// Ask asks what a path stands for. nil means well; an error says what is not.
func (a *Asker) Ask(ctx context.Context, path string) error {
	p, ok := a.set[path]
	if !ok {
		return fmt.Errorf("there is no probe %s", path)
	}
	wait := time.Duration(max(p.Seconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var err error
	switch {
	case p.TCP != nil:
		var nc net.Conn
		if nc, err = a.connect(ctx, p.TCP.Port); err == nil {
			_ = nc.Close()
		}
	case p.HTTP != nil:
		err = a.get(ctx, p.HTTP)
	case p.GRPC != nil:
		err = a.check(ctx, p.GRPC)
	}
	if err != nil && ctx.Err() != nil || errors.Is(err, stream.ErrDeadline) {
		return fmt.Errorf("the application did not answer within %s", wait)
	}
	return err
}

// connect opens a connection to the application: programs listen on either loopback address.
func (a *Asker) connect(ctx context.Context, port int) (net.Conn, error) {
	var first error
	for _, addr := range probe.Loopback(port) {
		nc, err := a.dial(ctx, "tcp", addr.String())
		if err == nil {
			return nc, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("the application does not take connections: %w", first)
}

// target is where a GET goes.
type target struct {
	port int
	tls  bool
	path string // with its query
	host string // without port
}

func (a *Asker) get(ctx context.Context, p *probe.HTTP) error {
	t := target{port: p.Port, tls: p.TLS, path: p.Path, host: a.host}
	if !strings.HasPrefix(t.path, "/") {
		t.path = "/" + t.path
	}
	for range mostRedirects {
		status, location, body, err := a.once(ctx, t, p.Headers)
		if err != nil {
			return err
		}
		next, follow := t.redirect(status, location)
		switch {
		case status < 200 || status > 399:
			return fmt.Errorf("the application answered %d: %s", status, body)
		case !follow:
			return nil
		}
		t = next
	}
	return fmt.Errorf("the application redirects more than %d times", mostRedirects)
}

// redirect returns where a response points to, when that is the same host: the kubelet takes other redirects as well.
func (t target) redirect(status int, location string) (target, bool) {
	if status < 300 || status > 399 || status == 304 || location == "" {
		return t, false
	}
	location, _, _ = strings.Cut(location, "#")
	scheme, rest, absolute := strings.Cut(location, "://")
	switch {
	case absolute && !strings.ContainsAny(scheme, "/?"): // else the URL is in a query, as of a login page
		authority, path, _ := strings.Cut(rest, "/")
		path = "/" + path
		if a, query, ok := strings.Cut(authority, "?"); ok { // http://host?query
			authority, path = a, "/?"+query
		}
		host, port, err := net.SplitHostPort(authority)
		if err != nil {
			host, port = strings.Trim(authority, "[]"), map[string]string{"http": "80", "https": "443"}[strings.ToLower(scheme)]
		}
		n, err := strconv.Atoi(port)
		if err != nil || n < 1 || n > 65535 || !strings.EqualFold(host, t.host) {
			return t, false
		}
		t.port, t.tls, t.path = n, strings.EqualFold(scheme, "https"), path
	case strings.HasPrefix(location, "//"):
		return t, false
	case strings.HasPrefix(location, "/"):
		t.path = location
	case strings.HasPrefix(location, "?"):
		path, _, _ := strings.Cut(t.path, "?")
		t.path = path + location
	default:
		path, _, _ := strings.Cut(t.path, "?")
		t.path = path[:strings.LastIndexByte(path, '/')+1] + location
	}
	return t, !strings.ContainsAny(t.path, " \r\n\t\x00")
}

// once sends one GET.
func (a *Asker) once(ctx context.Context, t target, headers []probe.Header) (status int, location, body string, err error) {
	nc, err := a.connect(ctx, t.port)
	if err != nil {
		return 0, "", "", err
	}
	plain := nc
	defer context.AfterFunc(ctx, func() { _ = plain.Close() })()
	if t.tls {
		// As the kubelet does: a probe asks whether the program answers, over loopback, not who it is.
		secure := tls.Client(plain, &tls.Config{InsecureSkipVerify: true, ServerName: t.host, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = plain.Close()
			return 0, "", "", fmt.Errorf("TLS with the application: %w", err)
		}
		nc = secure
	}
	client := conn.NewH1Client(nc, a.cfg, func(c *conn.H1Client, _ bool) { c.CloseConn() })
	client.Begin()
	defer client.Close()
	if d, ok := ctx.Deadline(); ok {
		client.SetReadDeadline(d)
	}
	resp, err := stream.Ask(client, t.request(headers), nil)
	if err != nil {
		return 0, "", "", fmt.Errorf("the application's answer: %w", err)
	}
	for _, f := range resp.Fields {
		if string(f.Name) == "location" {
			location = string(f.Value)
		}
	}
	if resp.Status > 399 && resp.HasBody {
		body = readText(client)
	}
	return resp.Status, location, body, nil
}

func (t target) request(headers []probe.Header) *message.Request {
	path, query, hasQuery := strings.Cut(t.path, "?")
	authority := net.JoinHostPort(t.host, strconv.Itoa(t.port))
	r := &message.Request{Method: []byte("GET"), Scheme: []byte("http"), Path: []byte(path), Query: []byte(query), HasQuery: hasQuery, Major: 1, Minor: 1}
	agent, accept := "kube-probe/malha", "*/*"
	for _, h := range headers {
		switch name := strings.ToLower(h.Name); name {
		case "host":
			authority = h.Value
		case "user-agent":
			agent = h.Value
		case "accept":
			accept = h.Value
		case "connection", "content-length", "transfer-encoding", "upgrade", "te", "keep-alive":
			// They are about the connection, which is ours.
		default:
			r.Fields.Add(name, []byte(h.Value))
		}
	}
	r.Fields.Add("user-agent", []byte(agent))
	if accept != "" {
		r.Fields.Add("accept", []byte(accept))
	}
	r.Authority, r.Host, r.Close = []byte(authority), []byte(t.host), true
	return r
}

// readText returns the beginning of a body, for a message.
func readText(up stream.Upstream) string {
	var b []byte
	for len(b) < mostBody {
		p, err := up.ReadBody()
		b = append(b, p...)
		if err != nil {
			break
		}
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(b[:min(len(b), mostBody)])), "?")
}

// check asks for the application's health by gRPC, in plaintext, as the kubelet does.
func (a *Asker) check(ctx context.Context, p *probe.GRPC) error {
	nc, err := a.connect(ctx, p.Port)
	if err != nil {
		return err
	}
	client := conn.NewH2Client(nc, a.cfg)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = client.Run()
	}()
	defer func() { <-ran }()
	defer client.CloseConn()
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	up, err := client.Open()
	if err != nil {
		return fmt.Errorf("HTTP/2 with the application: %w", err)
	}
	defer up.Close()
	if d, ok := ctx.Deadline(); ok {
		up.SetReadDeadline(d)
	}
	if err := stream.AskHealth(up, net.JoinHostPort(a.host, strconv.Itoa(p.Port)), a.host, "kube-probe/malha", p.Service); err != nil {
		return fmt.Errorf("the application's gRPC health: %w", err)
	}
	return nil
}
