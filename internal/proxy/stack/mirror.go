package stack

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

const (
	maxMirrors    = 64               // in flight; more are dropped
	mirrorTimeout = 15 * time.Second // of one
)

// Mirrors owns the goroutines of mirrored requests. The zero Mirrors is ready.
type Mirrors struct {
	wg      sync.WaitGroup
	mu      sync.Mutex
	running int
	closed  bool
}

// start runs f on a goroutine unless there are too many.
func (m *Mirrors) start(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.running == maxMirrors {
		return
	}
	m.running++
	m.wg.Go(func() {
		defer func() {
			m.mu.Lock()
			m.running--
			m.mu.Unlock()
		}()
		f()
	})
}

// Close waits for the mirrors in flight; none is started any more.
func (m *Mirrors) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wg.Wait()
}

// mirror sends copies of the request where the route says, and forgets the answers. A body that was not kept is not
// mirrored, and then neither is its request.
func (x *exchange) mirror() {
	if x.route == nil || len(x.rec.Route.Mirrors) == 0 || !x.body.whole || len(x.req.Upgrade) > 0 {
		return
	}
	for i := range x.rec.Route.Mirrors {
		m := &x.rec.Route.Mirrors[i]
		c := x.s.clusters[m.Cluster]
		if c == nil || !(m.Percent >= 100 || rand.Float64()*100 < m.Percent) {
			continue
		}
		req, body := shadow(x.req), bytes.Clone(x.body.kept)
		x.s.Mirrors.start(func() { sendMirror(c, req, body) })
	}
}

// shadow copies a request with "-shadow" at the end of its host, as Envoy and Istio mark mirrored requests.
func shadow(r *message.Request) *message.Request {
	c := *r
	c.Method, c.Path, c.Query = bytes.Clone(r.Method), bytes.Clone(r.Path), bytes.Clone(r.Query)
	c.Host = append(slices.Clone(r.Host), "-shadow"...)
	c.Authority = c.Host
	if bytes.IndexByte(r.Host, ':') >= 0 { // an address has no name to mark
		c.Host, c.Authority = bytes.Clone(r.Host), bytes.Clone(r.Authority)
	} else if r.Port != 0 {
		c.Authority = strconv.AppendInt(append(slices.Clone(c.Host), ':'), int64(r.Port), 10)
	}
	c.Fields = make(message.Fields, len(r.Fields))
	for i, f := range r.Fields {
		c.Fields[i] = message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)}
	}
	return &c
}

func sendMirror(c *upstream.Cluster, req *message.Request, body []byte) {
	deadline := time.Now().Add(mirrorTimeout)
	l, err := c.Acquire(&upstream.Attempt{HTTP2: req.Major == 2, Deadline: deadline})
	if err != nil {
		return
	}
	l.SetReadDeadline(deadline)
	var resp message.Response
	err = l.WriteHead(req, len(body) == 0)
	if err == nil && len(body) > 0 {
		err = l.WriteBody(body, true)
	}
	if err == nil {
		err = l.Flush()
	}
	for err == nil && resp.Status < 200 {
		err = l.ReadHead(&resp)
	}
	for err == nil && resp.HasBody {
		_, err = l.ReadBody() // to the end, so that the connection can be used again
	}
	l.Done(upstream.Outcome{Status: resp.Status})
}
