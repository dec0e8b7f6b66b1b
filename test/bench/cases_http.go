package main

import (
	"fmt"
	"strconv"

	"github.com/malha-mesh/malha/internal/ident"
)

const (
	h1Connections = 64
	bodySize      = 1024
)

// h1Peers starts the four proxies for plain HTTP/1.1, and checks that each answers.
func h1Peers(a *arena, r *result, withEnvoy bool) (backend int, err error) {
	if backend, err = a.backend("backend", bodySize); err != nil {
		return 0, err
	}
	p, err := ports(4)
	if err != nil {
		return 0, err
	}
	m, err := a.malha("malha-proxy", outboundPlan(p[0], backend, ident.HTTP), "")
	if err != nil {
		return 0, err
	}
	r.add("malha-proxy", p[0], m)
	n, err := a.nginx("nginx", proxyCPU, nginxProxy(p[1], backend, "", ""))
	if err != nil {
		return 0, err
	}
	r.add("nginx", p[1], n)
	h, err := a.haproxy("haproxy", "http", p[2], backend, "", "")
	if err != nil {
		return 0, err
	}
	r.add("haproxy", p[2], h)
	if withEnvoy && a.tools.envoy != "" {
		e, err := a.envoyProxy("envoy", p[3], backend, false)
		if err != nil {
			return 0, err
		}
		r.add("envoy", p[3], e)
	}
	return backend, r.answering()
}

// answering waits until every subject answers a request.
func (r *result) answering() error {
	for _, s := range r.subjects {
		for _, p := range s.procs {
			if err := p.ready(s.port); err != nil {
				return err
			}
		}
		if err := works(s.port); err != nil {
			return fmt.Errorf("%s: %w%s", s.name, err, tails(s.procs))
		}
	}
	return nil
}

// warm loads every subject for a moment, so that connections and caches are there.
func (r *result) warm() error {
	for _, s := range r.subjects {
		if _, err := wrk(s.port, h1Connections, 1); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// flatOut measures every subject under HTTP/1.1 as fast as it goes.
func (b *bench) flatOut(r *result) error {
	return b.interleave(r, func(s *subject) (sample, error) {
		return saturate(s, func() (loadResult, error) { return wrk(s.port, h1Connections, b.seconds) })
	})
}

func caseH1(b *bench, a *arena) (*result, error) {
	r := &result{id: "h1", title: "HTTP/1.1, keep-alive", columns: []metric{cpu, rate, rss, foreign},
		method: fmt.Sprintf("wrk, %d connections, %d-byte answers, eight request headers, as fast as it goes.", h1Connections, bodySize)}
	if _, err := h1Peers(a, r, true); err != nil {
		return nil, err
	}
	if err := r.warm(); err != nil {
		return nil, err
	}
	err := b.flatOut(r)
	r.below("HTTP/1.1 keep-alive, CPU per request, against the better of nginx and HAProxy", cpu, 0.95, "nginx", "haproxy")
	r.below("HTTP/1.1 keep-alive, CPU per request, against Envoy", cpu, 0.5, "envoy")
	return r, err
}

func caseFloor(b *bench, a *arena) (*result, error) {
	r := &result{id: "floor", title: "HTTP/1.1: what a relay costs that reads nothing of it", columns: []metric{cpu, rate, foreign},
		method: "The same load as before. The relays pass bytes on and know nothing of HTTP, so no proxy can be cheaper. One waits as malha-proxy does, with goroutines, one by an event loop of its own, as nginx and HAProxy do."}
	backend, err := h1Peers(a, r, false)
	if err != nil {
		return nil, err
	}
	p, err := ports(2)
	if err != nil {
		return nil, err
	}
	for i, kind := range []string{"goroutines", "loop"} {
		name := "relay, " + kind
		proc, err := a.relay("relay-"+kind, kind, p[i], backend)
		if err != nil {
			return nil, err
		}
		r.add(name, p[i], proc)
	}
	if err := r.answering(); err != nil {
		return nil, err
	}
	if err := r.warm(); err != nil {
		return nil, err
	}
	return r, b.flatOut(r)
}

func caseLatency(b *bench, a *arena) (*result, error) {
	r := &result{id: "latency", title: "HTTP/1.1 at half of saturation: latency", columns: []metric{p50, p99, p999, cpu, foreign}}
	backend, err := h1Peers(a, r, false)
	if err != nil {
		return nil, err
	}
	// One rate for all: half of what the slower of ours and nginx can do.
	top := 0.0
	for _, s := range r.subjects[:2] {
		l, err := wrk(s.port, h1Connections, min(b.seconds, 3))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		if top == 0 || l.rate() < top {
			top = l.rate()
		}
	}
	half := top / 2
	r.add("no proxy", backend)
	r.method = fmt.Sprintf("Our open-loop generator, %d connections, %.0f requests/s for every subject: half of the rate at which the slower of malha-proxy and nginx saturates. A latency counts from the moment when the request was due. HAProxy and the direct path are there to compare with.", h1Connections, half)
	err = b.interleave(r, func(s *subject) (sample, error) { return b.constant(a, s, h1Connections, half) })
	r.below("at 50 % of saturation, p50, against nginx", p50, 1, "nginx")
	r.below("at 50 % of saturation, p99, against nginx", p99, 1, "nginx")
	r.below("at 50 % of saturation, p99.9, against nginx", p999, 1.2, "nginx")
	return r, err
}

// constant measures latencies and CPU time at a constant rate.
func (b *bench) constant(a *arena, s *subject, connections int, perSecond float64) (sample, error) {
	var l loadResult
	m, err := saturate(s, func() (_ loadResult, err error) {
		l, err = a.generator("rate", "-port", strconv.Itoa(s.port), "-connections", strconv.Itoa(connections), "-rps", seconds(perSecond), "-seconds", seconds(b.seconds))
		return l, err
	})
	if err != nil {
		return nil, err
	}
	m[p50], m[p99], m[p999] = l.P50, l.P99, l.P999
	if len(s.procs) == 0 {
		delete(m, cpu)
	}
	return m, nil
}

const (
	grpcPath    = "/api/items.Items/Get"
	grpcRequest = 100  // bytes of a message, without its prefix of 5
	grpcAnswer  = 1000 // likewise
)

func caseH2(b *bench, a *arena) (*result, error) {
	const connections, streams = 8, 16
	r := &result{id: "h2", title: "HTTP/2 to HTTP/2, gRPC unary sizes", columns: []metric{cpu, rate, rss, foreign},
		method: fmt.Sprintf("h2load, %d connections × %d streams, POST with a message of %d bytes, answers of %d bytes and a grpc-status trailer from nghttpd; prior knowledge on both sides, no TLS.", connections, streams, grpcRequest, grpcAnswer)}
	p, err := ports(5)
	if err != nil {
		return nil, err
	}
	message := func(n int) []byte { return append([]byte{0, 0, 0, byte(n >> 8), byte(n)}, make([]byte, n)...) }
	if _, err := a.file("pages"+grpcPath, message(grpcAnswer)); err != nil {
		return nil, err
	}
	body, err := a.file("request", message(grpcRequest))
	if err != nil {
		return nil, err
	}
	backend, err := a.start("nghttpd", loadCPU, "", "nghttpd", "--no-tls", "-a", "127.0.0.1", "-d", a.dir+"/pages", "--trailer", "grpc-status: 0", "-m", "1000", strconv.Itoa(p[0]))
	if err != nil {
		return nil, err
	}
	if err := backend.ready(p[0]); err != nil {
		return nil, err
	}
	m, err := a.malha("malha-proxy", outboundPlan(p[1], p[0], ident.GRPC), "")
	if err != nil {
		return nil, err
	}
	r.add("malha-proxy", p[1], m)
	n, err := a.nghttpx("nghttpx", p[2], p[0])
	if err != nil {
		return nil, err
	}
	r.add("nghttpx", p[2], n)
	if a.tools.envoy != "" {
		e, err := a.envoyProxy("envoy", p[3], p[0], true)
		if err != nil {
			return nil, err
		}
		r.add("envoy", p[3], e)
	}
	h, err := a.haproxy("haproxy", "http", p[4], p[0], " proto h2", " proto h2")
	if err != nil {
		return nil, err
	}
	r.add("haproxy", p[4], h)
	load := func(s *subject, t float64) (loadResult, error) { return h2load(s.port, connections, streams, body, t) }
	for _, s := range r.subjects {
		if err := s.procs[0].ready(s.port); err != nil {
			return nil, err
		}
		if _, err := load(s, 1); err != nil {
			return nil, fmt.Errorf("%s: %w%s", s.name, err, tails(s.procs))
		}
	}
	err = b.interleave(r, func(s *subject) (sample, error) {
		return saturate(s, func() (loadResult, error) { return load(s, b.seconds) })
	})
	r.below("HTTP/2 to HTTP/2, CPU per request, against nghttpx", cpu, 1, "nghttpx")
	r.below("HTTP/2 to HTTP/2, CPU per request, against Envoy", cpu, 0.4, "envoy")
	r.notes = append(r.notes, "HAProxy's mode for the same work is there to compare with.")
	return r, err
}

func caseTelemetry(b *bench, a *arena) (*result, error) {
	r := &result{id: "telemetry", title: "Telemetry on against off", columns: []metric{cpu, rate, foreign}, method: "Two of our proxies with the load of the first case, one with `--telemetry off`."}
	backend, err := a.backend("backend", bodySize)
	if err != nil {
		return nil, err
	}
	p, err := ports(2)
	if err != nil {
		return nil, err
	}
	on, err := a.malha("on", outboundPlan(p[0], backend, ident.HTTP), "")
	if err != nil {
		return nil, err
	}
	off, err := a.malha("off", outboundPlan(p[1], backend, ident.HTTP), "", "--telemetry", "off")
	if err != nil {
		return nil, err
	}
	r.add("on", p[0], on)
	r.add("off", p[1], off)
	r.configs = nil // as in the first case
	if err := r.answering(); err != nil {
		return nil, err
	}
	err = b.flatOut(r)
	r.below("telemetry on against off, CPU per request", cpu, 1.05, "off")
	return r, err
}
