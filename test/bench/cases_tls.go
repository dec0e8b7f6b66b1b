package main

import (
	"fmt"
	"strconv"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
)

// meshPairs starts client sidecar and server sidecar, ours and nginx twice, and returns the backend's port.
func meshPairs(a *arena, r *result) (int, error) {
	client, server, err := a.identities()
	if err != nil {
		return 0, err
	}
	backend, err := a.backend("backend", bodySize)
	if err != nil {
		return 0, err
	}
	p, err := ports(4)
	if err != nil {
		return 0, err
	}
	in, err := a.malha("server-sidecar", inboundPlan(p[1], backend, ident.HTTP), server.dir)
	if err != nil {
		return 0, err
	}
	out, err := a.malha("client-sidecar", meshed(outboundPlan(p[0], p[1], ident.HTTP)), client.dir)
	if err != nil {
		return 0, err
	}
	r.add("malha-proxy ×2", p[0], out, in)
	nin, err := a.nginx("nginx-server-side", proxyCPU, nginxProxy(p[3], backend, nginxTLSIn(server), ""))
	if err != nil {
		return 0, err
	}
	nout, err := a.nginx("nginx-client-side", proxyCPU, nginxProxy(p[2], p[3], "", nginxTLSOut(client)))
	if err != nil {
		return 0, err
	}
	r.add("nginx ×2", p[2], nout, nin)
	return backend, r.answering()
}

// http1Between adds a pair of ours whose sidecars speak HTTP/1.1 to each other too, as h2UpgradePolicy DO_NOT_UPGRADE makes it.
func http1Between(a *arena, r *result, backend int) error {
	client, server, err := a.identities()
	if err != nil {
		return err
	}
	p, err := ports(2)
	if err != nil {
		return err
	}
	in, err := a.malha("server-sidecar-h1", inboundPlan(p[1], backend, ident.HTTP), server.dir)
	if err != nil {
		return err
	}
	plan := meshed(outboundPlan(p[0], p[1], ident.HTTP))
	plan.Endpoints[0].Endpoints[0].HTTP2 = false
	out, err := a.malha("client-sidecar-h1", plan, client.dir)
	if err != nil {
		return err
	}
	r.add("malha-proxy ×2, HTTP/1.1 between", p[0], out, in)
	return r.answering()
}

func caseMesh(b *bench, a *arena) (*result, error) {
	r := &result{id: "mesh", title: "The mesh path: client sidecar → mutual TLS → server sidecar", columns: []metric{cpu, rate, rss, foreign},
		method: fmt.Sprintf("wrk, %d connections, %d-byte answers. The CPU time of both proxies of a pair, which share one processor. Routing, telemetry and an authorization policy are in force in ours.", h1Connections, bodySize)}
	backend, err := meshPairs(a, r)
	if err != nil {
		return nil, err
	}
	if err := http1Between(a, r, backend); err != nil {
		return nil, err
	}
	if err := r.warm(); err != nil {
		return nil, err
	}
	err = b.flatOut(r)
	r.notes = append(r.notes, "Between the sidecars is HTTP/2, the default for a port that is declared HTTP; applications and load speak HTTP/1.1. The pair with HTTP/1.1 between (h2UpgradePolicy DO_NOT_UPGRADE) is there to compare with ([design/0010](design/0010-data-path.md)).")
	r.below("mesh path, CPU per request of the pair, against nginx + nginx", cpu, 0.8, "nginx ×2")
	return r, err
}

func caseMeshLatency(b *bench, a *arena) (*result, error) {
	const connections, perSecond = 16, 1000
	r := &result{id: "meshlatency", title: "The mesh path at 1,000 requests/s: added latency", columns: []metric{p50, p99, p999, cpu, foreign},
		method: fmt.Sprintf("Our open-loop generator, %d connections. Added latency is the pair's minus that of the direct path in the same round.", connections)}
	backend, err := meshPairs(a, r)
	if err != nil {
		return nil, err
	}
	r.add("no proxy", backend)
	r.configs = nil
	if err := b.interleave(r, func(s *subject) (sample, error) { return b.constant(a, s, connections, perSecond) }); err != nil {
		return nil, err
	}
	direct := r.by("no proxy")
	added := func(s *subject, m metric) float64 {
		var v []float64
		for i := range s.rounds {
			v = append(v, (s.rounds[i][m]-direct.rounds[i][m])/1000)
		}
		return median(v)
	}
	ours, nginx := r.subjects[0], r.subjects[1]
	r.goals = append(r.goals, goal{what: "mesh path at 1,000 requests/s, added p99", got: added(ours, p99), limit: 0.5, unit: "ms"})
	r.notes = append(r.notes, fmt.Sprintf("Added p50, p99, p99.9: malha-proxy ×2 %.3f, %.3f, %.3f ms; nginx ×2 %.3f, %.3f, %.3f ms.",
		added(ours, p50), added(ours, p99), added(ours, p999), added(nginx, p50), added(nginx, p99), added(nginx, p999)))
	return r, nil
}

// tlsPeers starts proxies that terminate mutual TLS in front of a plain backend.
func tlsPeers(a *arena, r *result, size int) (*identity, error) {
	client, server, err := a.identities()
	if err != nil {
		return nil, err
	}
	backend, err := a.backend("backend", size)
	if err != nil {
		return nil, err
	}
	p, err := ports(3)
	if err != nil {
		return nil, err
	}
	m, err := a.malha("malha-proxy", inboundPlan(p[0], backend, ident.HTTP), server.dir)
	if err != nil {
		return nil, err
	}
	r.add("malha-proxy", p[0], m)
	n, err := a.nginx("nginx", proxyCPU, nginxProxy(p[1], backend, nginxTLSIn(server), ""))
	if err != nil {
		return nil, err
	}
	r.add("nginx", p[1], n)
	h, err := a.haproxy("haproxy", "http", p[2], backend, haproxyTLSIn(server), "")
	if err != nil {
		return nil, err
	}
	r.add("haproxy", p[2], h)
	for _, s := range r.subjects {
		if err := s.procs[0].ready(s.port); err != nil {
			return nil, err
		}
	}
	return client, nil
}

// tlsArgs are the arguments of a TLS load for a subject: ours demands a protocol of the mesh, the peers know none.
func tlsArgs(s *subject, load, mesh string, connections int, client *identity, t float64) []string {
	args := []string{load, "-port", strconv.Itoa(s.port), "-connections", strconv.Itoa(connections), "-identity", client.dir, "-seconds", seconds(t)}
	if s.name == "malha-proxy" {
		args = append(args, "-alpn", mesh)
	}
	return args
}

func oneTLSSide(b *bench, a *arena, r *result, size int, limit float64) (*result, error) {
	client, err := tlsPeers(a, r, size)
	if err != nil {
		return nil, err
	}
	load := func(s *subject, t float64) (loadResult, error) {
		return a.generator(tlsArgs(s, "tls", trust.ALPNHTTP1, h1Connections, client, t)...)
	}
	for _, s := range r.subjects {
		if _, err := load(s, 1); err != nil {
			return nil, fmt.Errorf("%s: %w%s", s.name, err, tails(s.procs))
		}
	}
	err = b.interleave(r, func(s *subject) (sample, error) {
		return saturate(s, func() (loadResult, error) { return load(s, b.seconds) })
	})
	r.below(fmt.Sprintf("one TLS side, %d KB answers, CPU per request, against nginx", size/1024), cpu, limit, "nginx")
	return r, err
}

func caseTLS(b *bench, a *arena) (*result, error) {
	r := &result{id: "tls", title: "One TLS side, 1 KB answers", columns: []metric{cpu, rate, rss, foreign},
		method: fmt.Sprintf("Our TLS load, %d keep-alive connections with a client certificate, TLS 1.3, AES-128-GCM, X25519, P-256, to a proxy in front of a plain backend.", h1Connections)}
	return oneTLSSide(b, a, r, bodySize, 0.9)
}

func caseTLS64K(b *bench, a *arena) (*result, error) {
	r := &result{id: "tls64k", title: "One TLS side, 64 KB answers", columns: []metric{cpu, rate, rss, foreign}, method: "As before."}
	return oneTLSSide(b, a, r, 64<<10, 1.1)
}

func caseHandshakes(b *bench, a *arena) (*result, error) {
	const workers = 16
	r := &result{id: "handshakes", title: "Full mutual handshakes", columns: []metric{perCore, handshakes, rss, foreign},
		method: fmt.Sprintf("A connection for each request, %d at once, both sides with P-256 certificates, X25519, nothing resumed. The figure of record is handshakes for each second of the proxy's CPU time, with the request and the connection that belong to each.", workers)}
	client, err := tlsPeers(a, r, 64)
	if err != nil {
		return nil, err
	}
	err = b.interleave(r, func(s *subject) (sample, error) {
		m, err := saturate(s, func() (loadResult, error) {
			return a.generator(tlsArgs(s, "handshakes", trust.ALPNHTTP1, workers, client, b.seconds)...)
		})
		if err != nil {
			return nil, err
		}
		m[perCore], m[handshakes] = 1e6/m[cpu], m[rate]
		return m, nil
	})
	r.above("full mutual handshakes, against nginx", perCore, 1, "nginx")
	return r, err
}
