package main

import (
	"fmt"
	"strconv"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
)

const bulkConnections = 4

// bulk measures how fast a proxy lets bytes through, and the CPU time for them.
func (b *bench) bulk(a *arena, s *subject, args []string) (sample, error) {
	var l loadResult
	spent, others, err := around(s.procs, func() (err error) { l, err = a.generator(args...); return err })
	if err != nil {
		return nil, err
	}
	return sample{throughput: l.Bytes / 1e9 / l.Seconds, cpuPerGB: spent.Seconds() * 1e3 / (l.Bytes / 1e9), foreign: others}, nil
}

// bulkPeers starts proxies of opaque TCP in front of a program that writes for ever.
func bulkPeers(a *arena, r *result, server *identity) error {
	p, err := ports(4)
	if err != nil {
		return err
	}
	source, err := a.start("source", loadCPU, "", a.tools.self, "generator", "source", "-port", strconv.Itoa(p[0]))
	if err != nil {
		return err
	}
	if err := source.ready(p[0]); err != nil {
		return err
	}
	plan, dir := tcpPlan(p[1], p[0]), ""
	tlsIn, bind := "", ""
	if server != nil {
		plan, dir = inboundPlan(p[1], p[0], ident.TCP), server.dir
		tlsIn, bind = nginxTLSIn(server), haproxyTLSIn(server)
	}
	m, err := a.malha("malha-proxy", plan, dir)
	if err != nil {
		return err
	}
	r.add("malha-proxy", p[1], m)
	h, err := a.haproxy("haproxy", "tcp", p[2], p[0], bind, "")
	if err != nil {
		return err
	}
	r.add("haproxy", p[2], h)
	if a.tools.streams != "" {
		listen := strconv.Itoa(p[3])
		if server != nil {
			listen += " ssl"
		}
		n, err := a.nginxStream("nginx-stream", fmt.Sprintf("  server { listen 127.0.0.1:%s; %s proxy_pass 127.0.0.1:%d; proxy_buffer_size 64k; tcp_nodelay on; }", listen, tlsIn, p[0]))
		if err != nil {
			return err
		}
		r.add("nginx stream", p[3], n)
	}
	for _, s := range r.subjects {
		if err := s.procs[0].ready(s.port); err != nil {
			return err
		}
	}
	return nil
}

func caseTCP(b *bench, a *arena) (*result, error) {
	r := &result{id: "tcp", title: "Opaque TCP, bulk, plain", columns: []metric{throughput, cpuPerGB, foreign},
		method: fmt.Sprintf("%d connections, 64 KB writes from the backend to a client that throws them away. Backend and client share the processor that the proxy does not have, and may be what limits the rate; therefore the CPU time for a GB stands beside it. HAProxy splices.", bulkConnections)}
	if err := bulkPeers(a, r, nil); err != nil {
		return nil, err
	}
	err := b.interleave(r, func(s *subject) (sample, error) {
		return b.bulk(a, s, []string{"bulk", "-port", strconv.Itoa(s.port), "-connections", strconv.Itoa(bulkConnections), "-seconds", seconds(b.seconds)})
	})
	r.above("opaque TCP, bulk, plain, throughput against HAProxy", throughput, 0.95, "haproxy")
	r.above("opaque TCP, bulk, plain, throughput against nginx stream", throughput, 0.9, "nginx stream")
	return r, err
}

func caseTCPTLS(b *bench, a *arena) (*result, error) {
	r := &result{id: "tcptls", title: "Opaque TCP, bulk, one TLS side", columns: []metric{throughput, cpuPerGB, foreign},
		method: "As before; the client speaks mutual TLS 1.3 with AES-128-GCM, the proxy terminates it."}
	client, server, err := a.identities()
	if err != nil {
		return nil, err
	}
	if err := bulkPeers(a, r, server); err != nil {
		return nil, err
	}
	err = b.interleave(r, func(s *subject) (sample, error) {
		return b.bulk(a, s, tlsArgs(s, "bulk", trust.ALPNOpaque, bulkConnections, client, b.seconds))
	})
	r.above("opaque TCP, bulk, TLS, throughput against HAProxy", throughput, 0.95, "haproxy")
	r.above("opaque TCP, bulk, TLS, throughput against nginx stream", throughput, 0.9, "nginx stream")
	return r, err
}
