// Package admin answers questions about a running proxy, and the few commands it takes, over HTTP.
//
// In: what the rooms of the proxy say about themselves, as functions. Out: /healthz, metrics, the plan in force, clusters,
// certificates. It is served by the proxy's own HTTP/1 engine, as linking net/http would cost more memory than
// everything else here. Run owns the accept loop and one goroutine for each connection, and waits for all.
//
// It binds to loopback unless told otherwise: it has no authentication but Options.Trusted, which knows whose programs are at the
// other end on a machine that people share. Others get health and metrics. A request must name the server by address or as
// localhost, so that a page in a browser on the same machine, whose name was made to resolve here, can neither read nor command
// (DNS rebinding); commands want POST, and none that a page of another origin has sent (cross-site request forgery).
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Options are what the server asks. Nil functions have nothing to say: their paths answer 404.
type Options struct {
	Ready     func() error      // nil error: ready for traffic; else why not
	Metrics   io.WriterTo       // Prometheus text
	Plan      func() *plan.Plan // in force; nil none
	Listeners func() any        // what /listeners shows as JSON
	Clusters  func() any        // what /clusters shows as JSON
	Certs     trust.Source
	Level     *slog.LevelVar
	Drain     func() // begin to drain; returns at once
	Quit      func() // drain and exit; returns at once
	Inquiry   Inquiry
	Version   string
	Log       *slog.Logger
	// Trusted says whether a client may command, and see more than health and metrics; nil: everybody may.
	Trusted func(remote, local netip.AddrPort) error
}

// Inquiry asks the application in place of the kubelet. Every path that it has answers 200 when the application is well, else
// 503 and why.
type Inquiry interface {
	Has(path string) bool
	Ask(ctx context.Context, path string) error
}

// maxConns bounds the connections at one time. When they are all taken, those that say nothing are ended soon (conn.Drain), and more
// wait to be served until then.
const maxConns = 64

// Server is the admin server.
type Server struct {
	o     Options
	paths map[string]endpoint
	cfg   *conn.Config
}

// endpoint is one path: command endpoints take POST, others GET and HEAD.
type endpoint struct {
	command bool
	open    bool // to clients that are not trusted, too
	media   string
	help    string
	serve   func(w io.Writer, query string) error // writes the body; an *answer as error sets the status
}

// answer is a response other than 200.
type answer struct {
	status int
	text   string
}

func (a *answer) Error() string { return a.text }

const (
	text = "text/plain; charset=utf-8"
	data = "application/json"
)

// New returns a server that does nothing before Run.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, cfg: conn.Defaults()}
	s.cfg.Idle, s.cfg.WriteTimeout = 2*time.Minute, 30*time.Second
	s.paths = s.endpoints()
	return s
}

// Run serves the listener until ctx is over, and closes it. It returns when every connection is closed.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	drain := &conn.Drain{} // of the connections that were accepted last
	var conns sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer func() {
		stop()
		drain.Begin()
		conns.Wait()
	}()
	places := make(chan struct{}, maxConns)
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Too many open files, or a client that was gone at once: both pass.
			s.o.Log.Warn("the admin port could not accept a connection", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if len(places) == maxConns {
			drain.Begin()
			drain = &conn.Drain{}
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			_ = nc.Close()
			return nil
		}
		with := drain
		conns.Go(func() {
			defer func() { <-places }()
			peer := &conn.Peer{Remote: conn.AddrPort(nc.RemoteAddr()), Local: conn.AddrPort(nc.LocalAddr())}
			conn.ServeH1(nc, nil, peer, run{s, ctx}, s.cfg, with)
		})
	}
}

// run is the server in one Run.
type run struct {
	*Server
	ctx context.Context // of Run: questions to the application end with it
}

// find returns what is served at a path.
func (s run) find(path string) (endpoint, bool) {
	if s.o.Inquiry == nil || !s.o.Inquiry.Has(path) {
		e, ok := s.paths[path]
		return e, ok
	}
	return endpoint{open: true, media: text, serve: func(w io.Writer, _ string) error {
		if err := s.o.Inquiry.Ask(s.ctx, path); err != nil {
			return &answer{503, err.Error()}
		}
		_, err := io.WriteString(w, "well\n")
		return err
	}}, true
}

// Serve implements conn.Handler.
func (s run) Serve(d stream.Downstream, p *conn.Peer) {
	r := d.Request()
	head := string(r.Method) == "HEAD"
	e, ok := s.find(string(r.Path))
	var err error
	switch {
	case !named(r):
		err = &answer{403, "this server answers only to its address or to localhost, not to " + string(r.Host)}
	case e.command && foreign(r):
		err = &answer{403, "this server takes no commands from web pages"}
	case !e.open && s.o.Trusted != nil:
		if no := s.o.Trusted(p.Remote, p.Local); no != nil {
			err = &answer{403, "this request is refused: " + no.Error()}
		}
	}
	switch {
	case err != nil:
	case !ok:
		err = &answer{404, "no such page; / lists them"}
	case e.command && string(r.Method) != "POST":
		err = &answer{405, "use POST"}
	case !e.command && string(r.Method) != "GET" && !head:
		err = &answer{405, "use GET"}
	}
	w := &body{d: d, head: head, media: e.media}
	if err == nil {
		err = e.serve(w, string(r.Query))
	}
	var a *answer
	switch {
	case errors.As(err, &a) && !w.begun:
		w.status, w.media = a.status, text
		if a.status == 405 {
			w.allow = a.text[len("use "):]
		}
		_, err = io.WriteString(w, a.text+"\n")
	case err != nil && !w.begun:
		w.status, w.media = 500, text
		_, err = io.WriteString(w, err.Error()+"\n")
	}
	if err == nil {
		err = w.end()
	}
	if err != nil {
		d.Reset(stream.Internal)
	}
}

// foreign reports whether a web page sent the request: browsers tell its origin with everything but GET and HEAD (Fetch section
// 3.2), and there is no page of ours that commands.
func foreign(r *message.Request) bool {
	_, origin := r.Fields.Get("origin")
	_, site := r.Fields.Get("sec-fetch-site")
	return origin || site
}

// named reports whether the request names the server by an address or as localhost. HTTP/1.0 clients may name nobody.
func named(r *message.Request) bool {
	return len(r.Host) == 0 || ident.HostIsAddress(string(r.Host))
}

// body is the response. A short one has a length; one that outgrows the buffer is streamed.
type body struct {
	d      stream.Downstream
	status int // 0: 200
	media  string
	allow  string
	head   bool // HEAD: no body
	begun  bool
	buf    bytes.Buffer
}

const bodyBuffer = 16 << 10

func (w *body) Write(p []byte) (int, error) {
	if w.begun {
		if w.head {
			return len(p), nil
		}
		return len(p), w.d.WriteBody(p, false)
	}
	w.buf.Write(p)
	if w.buf.Len() > bodyBuffer {
		return len(p), w.begin(message.Unknown)
	}
	return len(p), nil
}

// begin writes the head and what is buffered. length is the body's, or message.Unknown when more will come.
func (w *body) begin(length int64) error {
	w.begun = true
	r := message.Response{Status: w.status, Length: length, HasBody: !w.head, Major: 1, Minor: 1}
	if r.Status == 0 {
		r.Status = 200
	}
	r.Fields.Add("content-type", []byte(w.media))
	r.Fields.Add("cache-control", []byte("no-store"))
	r.Fields.Add("x-content-type-options", []byte("nosniff"))
	if w.allow != "" {
		r.Fields.Add("allow", []byte(w.allow))
	}
	end := w.head || length == 0
	if err := w.d.WriteHead(&r, end); err != nil || end {
		return err
	}
	return w.d.WriteBody(w.buf.Bytes(), length >= 0)
}

func (w *body) end() error {
	if !w.begun {
		if err := w.begin(int64(w.buf.Len())); err != nil {
			return err
		}
	} else if !w.head {
		if err := w.d.WriteBody(nil, true); err != nil {
			return err
		}
	}
	return w.d.Flush()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// level reads "level=debug".
func level(query string) (slog.Level, error) {
	var l slog.Level
	v, ok := bytes.CutPrefix([]byte(query), []byte("level="))
	if !ok || l.UnmarshalText(v) != nil {
		return 0, &answer{400, "want ?level= one of debug, info, warn, error, not " + strconv.Quote(query)}
	}
	return l, nil
}
