package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
)

// tools is where the programs are. An empty path means that it is not installed: its rows are left out, with a note.
type tools struct {
	malha   string
	envoy   string
	streams string // nginx's module for TCP, a file
	self    string // this program, for load that runs pinned
}

// malha runs malha-proxy from a plan: default telemetry and limits, one thread, no access log, as all the others.
func (a *arena) malha(name string, p *plan.Plan, identity string, more ...string) (*process, error) {
	b := encode(p)
	file, err := a.file(name+".plan.json", b)
	if err != nil {
		return nil, err
	}
	args := []string{a.tools.malha, "--plan", file, "--admin", "127.0.0.1:0", "--concurrency", "1", "--access-log", "off", "--log-level", "warn"}
	if identity != "" {
		args = append(args, "--identity", identity)
	}
	return a.start(name, proxyCPU, string(b), append(args, more...)...)
}

const nginxHead = `daemon off; worker_processes 1; pid %[1]s/%[2]s.pid; error_log %[1]s/%[2]s.err;
%[3]sevents { worker_connections 8192; }
`

const nginxHTTP = `http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
  client_body_temp_path %[1]s/%[2]s.a; proxy_temp_path %[1]s/%[2]s.b; fastcgi_temp_path %[1]s/%[2]s.c; uwsgi_temp_path %[1]s/%[2]s.d; scgi_temp_path %[1]s/%[2]s.e;
%[3]s
}
`

// nginx runs nginx with servers for HTTP. On the proxy's processor it is one process, so that its CPU time is all there is.
func (a *arena) nginx(name string, processor int, servers string) (*process, error) {
	return a.nginxConf(name, processor, fmt.Sprintf(nginxHead, a.dir, name, "")+fmt.Sprintf(nginxHTTP, a.dir, name, servers))
}

// relay runs this program's own relay of a kind.
func (a *arena) relay(name, kind string, port, backend int) (*process, error) {
	return a.start(name, proxyCPU, "", a.tools.self, "relay", kind, address(port), address(backend))
}

// nginxStream runs nginx with servers for TCP.
func (a *arena) nginxStream(name, servers string) (*process, error) {
	load := "" // built in, or loaded from here
	if strings.HasSuffix(a.tools.streams, ".so") {
		load = "load_module " + a.tools.streams + ";\n"
	}
	return a.nginxConf(name, proxyCPU, fmt.Sprintf(nginxHead, a.dir, name, load)+"stream {\n"+servers+"\n}\n")
}

func (a *arena) nginxConf(name string, processor int, conf string) (*process, error) {
	file, err := a.file(name+".conf", []byte(conf))
	if err != nil {
		return nil, err
	}
	return a.start(name, processor, conf, "nginx", "-c", file, "-g", "master_process off;")
}

// backend runs an nginx on the load's processor that answers every path with a page of this size.
func (a *arena) backend(name string, size int) (int, error) {
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	// A short page is text in memory. nginx takes no long one there, so that is a file, kept open and sent by sendfile(2).
	location := fmt.Sprintf("location / { return 200 %q; }", strings.Repeat("x", size))
	if size > 2048 {
		page, err := a.file("pages/page", []byte(strings.Repeat("x", size)))
		if err != nil {
			return 0, err
		}
		location = fmt.Sprintf("root %s; sendfile on; open_file_cache max=10 inactive=600s; location / { rewrite ^ /page break; }", filepath.Dir(page))
	}
	p, err := a.nginx(name, loadCPU, fmt.Sprintf("  server { listen 127.0.0.1:%d; %s }", port, location))
	if err != nil {
		return 0, err
	}
	return port, p.ready(port)
}

// nginxProxy is the http configuration of a proxy that keeps its upstream connections. tlsIn and tlsOut are directives for the two
// sides. Buffers hold a whole answer of 64 KB, so that none goes through a file.
func nginxProxy(port, backend int, tlsIn, tlsOut string) string {
	ssl, scheme := "", "http"
	if tlsIn != "" {
		ssl = " ssl"
	}
	if tlsOut != "" {
		scheme = "https"
	}
	return fmt.Sprintf(`  proxy_buffer_size 16k; proxy_buffers 8 32k; proxy_busy_buffers_size 128k;
  upstream b { server 127.0.0.1:%d; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 600s; }
  server { listen 127.0.0.1:%d%s; %s
    location / { proxy_pass %s://b; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; %s } }`, backend, port, ssl, tlsIn, scheme, tlsOut)
}

// nginxTLSIn terminates TLS 1.3 with AES-128-GCM and X25519, and demands a client certificate; sessions are not resumed.
func nginxTLSIn(id *identity) string {
	return fmt.Sprintf(`ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem; ssl_client_certificate %[1]s/roots.pem; ssl_verify_client on;
    ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_ecdh_curve X25519; ssl_session_tickets off; ssl_session_cache off;`, id.dir)
}

// nginxTLSOut is the client side of the same. nginx can only verify a server by a DNS name, which a SPIFFE certificate does
// not have, so it does not: less work for it, at the handshake.
func nginxTLSOut(id *identity) string {
	return fmt.Sprintf(`proxy_ssl_certificate %[1]s/cert.pem; proxy_ssl_certificate_key %[1]s/key.pem; proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; proxy_ssl_session_reuse off;`, id.dir)
}

// haproxy runs HAProxy with one thread. bind and server are what follows the addresses in those lines.
func (a *arena) haproxy(name, mode string, port, backend int, bind, server string) (*process, error) {
	global, extra := "", "  http-reuse always\n"
	if mode == "tcp" { // what of its options was fastest here: splice-auto and smaller pipes are a third slower
		global, extra = "  tune.pipesize 1048576\n  tune.bufsize 65536\n", "  option splice-request\n  option splice-response\n"
	}
	conf := fmt.Sprintf(`global
  nbthread 1
  maxconn 4096
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-curves X25519
  tune.ssl.cachesize 0
%sdefaults
  mode %s
  timeout client 60s
  timeout server 60s
  timeout connect 5s
%sfrontend f
  bind 127.0.0.1:%d%s
  default_backend b
backend b
  server s 127.0.0.1:%d%s
`, global, mode, extra, port, bind, backend, server)
	file, err := a.file(name+".cfg", []byte(conf))
	if err != nil {
		return nil, err
	}
	return a.start(name, proxyCPU, conf, "haproxy", "-db", "-f", file)
}

// haproxyTLSIn is the bind line's part of mutual TLS.
func haproxyTLSIn(id *identity) string {
	return fmt.Sprintf(" ssl crt %[1]s/both.pem ca-file %[1]s/roots.pem verify required", id.dir)
}

// nghttpx runs nghttpx, HTTP/2 without TLS on both sides.
func (a *arena) nghttpx(name string, port, backend int) (*process, error) {
	args := []string{"nghttpx", "--conf=/dev/null", "--single-process", "-n1", "-f127.0.0.1," + fmt.Sprint(port) + ";no-tls", "-b127.0.0.1," + fmt.Sprint(backend) + ";;proto=h2", "--errorlog-file=/dev/stderr",
		"--frontend-http2-max-concurrent-streams=250", "--no-ocsp", "--backend-keep-alive-timeout=600s"}
	return a.start(name, proxyCPU, strings.Join(args, " "), args...)
}

// envoyProxy runs Envoy with one worker: the routes of outboundPlan, its own statistics as they are by default, no request ids.
func (a *arena) envoyProxy(name string, port, backend int, http2 bool) (*process, error) {
	options := "http_protocol_options: {}"
	if http2 {
		options = "http2_protocol_options: {}"
	}
	conf := fmt.Sprintf(`static_resources:
  listeners:
  - name: outbound_80
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          codec_type: AUTO
          stat_prefix: outbound_80
          generate_request_id: false
          route_config:
            name: "80"
            virtual_hosts:
            - name: %[2]s
              domains: ["%[2]s"]
              routes:
              - match: {prefix: "/", headers: [{name: x-canary, string_match: {exact: "true"}}]}
                direct_response: {status: 500}
              - match: {prefix: "/api/"}
                route: {cluster: backend, timeout: 10s, retry_policy: {retry_on: "connect-failure,refused-stream", num_retries: 2}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: backend
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {thresholds: [{max_connections: 8192, max_pending_requests: 8192, max_requests: 8192}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {%s}
    load_assignment:
      cluster_name: backend
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]
`, port, host, options, backend)
	file, err := a.file(name+".yaml", []byte(conf))
	if err != nil {
		return nil, err
	}
	return a.start(name, proxyCPU, conf, a.tools.envoy, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
}
