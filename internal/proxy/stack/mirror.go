package stack

import (
	"bytes"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
)

// Bounds of mirrored requests. Each holds a copy of a head and of a body up to keepLimit: with all of them in flight that is
// 8 MiB.
const (
	maxMirrors     = 64               // in flight; more are dropped
	maxOfCluster   = 32               // of these to one cluster, so that a dead one leaves room for others
	mirrorTimeout  = 15 * time.Second // of one, from its start to the end of the answer
	maxMirrorBytes = 1 << 20          // of an answer that are read, to save the connection
)

// Mirrors owns the goroutines of mirrored requests. The zero Mirrors is ready.
type Mirrors struct {
	wg      sync.WaitGroup
	mu      sync.Mutex
	running int
	of      map[*upstream.Cluster]int
	closed  bool
}

// start runs f on a goroutine unless there are too many, and reports whether it did. A panic there ends the copy alone.
func (m *Mirrors) start(c *upstream.Cluster, rec *telemetry.Recorder, f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.running == maxMirrors || m.of[c] == maxOfCluster {
		return false
	}
	if m.of == nil {
		m.of = make(map[*upstream.Cluster]int)
	}
	m.running++
	m.of[c]++
	m.wg.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				rec.Proxy.Panics.Inc()
			}
			m.mu.Lock()
			m.running--
			if m.of[c]--; m.of[c] == 0 {
				delete(m.of, c)
			}
			m.mu.Unlock()
		}()
		f()
	})
	return true
}

// Close waits for the mirrors in flight; none is started any more.
func (m *Mirrors) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wg.Wait()
}

// mirror sends copies of the request where the route says, and forgets the answers. It reports whether that is done: a body
// that is not known to be small may turn out to be when it has come. One that was not kept is not mirrored, and then neither
// is its request.
func (x *exchange) mirror() bool {
	if x.route == nil || len(x.rec.Route.Mirrors)+len(x.mirrors) == 0 || len(x.req.Upgrade) > 0 {
		return true
	}
	if x.body.pumping || !x.body.whole {
		return false
	}
	if x.asked != nil {
		x.setAuthority(string(x.asked))
	}
	x.copy(x.rec.Route.Mirrors)
	x.copy(x.mirrors)
	return true
}

// copy sends a copy of the request to each of the mirrors that chance takes.
func (x *exchange) copy(mirrors []plan.Mirror) {
	for i := range mirrors {
		m := &mirrors[i]
		c := x.s.clusters.Cluster(m.Cluster)
		if c == nil || !chance(m.Percent) {
			continue
		}
		req, body := shadow(x.req), bytes.Clone(x.body.kept)
		a := upstream.Attempt{HTTP2: req.Major == 2, Detected: x.attempt.Detected, Host: bytes.Clone(x.attempt.Host), Port: x.attempt.Port,
			Source: x.p.Remote, Target: x.attempt.Target, ToTarget: x.attempt.ToTarget}
		if x.s.Mirrors.start(c, x.s.Recorder, func() { sendMirror(c, a, req, body) }) {
			x.s.Recorder.Proxy.Mirrored.Inc()
		} else {
			x.s.Recorder.Proxy.MirrorsDropped.Inc()
		}
	}
}

// shadow copies a request with "-shadow" at the end of its host, as Envoy and Istio mark mirrored requests. A host that would be none
// then (an IPv6 address; a label over 63 bytes, RFC 1035 section 2.3.4) stays as it is: the next hop refuses what is no host.
func shadow(r *message.Request) *message.Request {
	c := *r
	c.Method, c.Path, c.Query = bytes.Clone(r.Method), bytes.Clone(r.Path), bytes.Clone(r.Query)
	c.Host = append(slices.Clone(r.Host), "-shadow"...)
	c.Authority = slices.Clone(c.Host)
	if r.Port != 0 {
		c.Authority = strconv.AppendInt(append(c.Authority, ':'), int64(r.Port), 10)
	}
	if _, _, _, err := message.ParseAuthority(c.Authority); err != nil {
		c.Host, c.Authority = bytes.Clone(r.Host), bytes.Clone(r.Authority)
	}
	c.Fields = make(message.Fields, len(r.Fields))
	for i, f := range r.Fields {
		c.Fields[i] = message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)}
	}
	return &c
}

func sendMirror(c *upstream.Cluster, a upstream.Attempt, req *message.Request, body []byte) {
	deadline := time.Now().Add(mirrorTimeout)
	a.Deadline = deadline
	l, err := c.Acquire(&a)
	if err != nil {
		return
	}
	// A read has its deadline; a write to who does not read is ended by this.
	ended := make(chan struct{})
	stop := time.AfterFunc(time.Until(deadline), func() {
		l.Cancel(stream.Cancelled)
		close(ended)
	})
	l.SetReadDeadline(deadline)
	var resp message.Response
	err = l.WriteHead(req, len(body) == 0)
	if err == nil && len(body) > 0 {
		err = l.WriteBody(body, true)
	}
	if err == nil {
		err = l.Flush()
	}
	for interim := 0; err == nil && resp.Status < 200 && interim <= maxInterim; interim++ {
		err = l.ReadHead(&resp)
	}
	for read := 0; err == nil && resp.HasBody && read < maxMirrorBytes; {
		var p []byte
		p, err = l.ReadBody() // to the end, so that the connection can be used again
		read += len(p)
	}
	if !stop.Stop() {
		<-ended // the lease is about to be somebody else's
	}
	if err == io.EOF {
		err = nil
	}
	l.Done(upstream.Outcome{Status: resp.Status, Err: err})
}
