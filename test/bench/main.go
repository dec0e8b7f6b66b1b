// Command bench compares what a proxied request costs: the CPU time of malha-proxy, nginx and HAProxy for the same
// work, taken in turn in one run. See docs/benchmarks.md, which it writes, for the method.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
)

const (
	connections = 64
	bodySize    = 1024
	host        = "backend.default.svc.cluster.local"
)

// subject is one proxy under test.
type subject struct {
	name    string
	version string
	port    int
	cmd     *exec.Cmd
	rounds  []round
}

// round is one measurement.
type round struct {
	micros float64 // CPU microseconds of the proxy for each request
	rps    float64
	p99    string
	rssKiB int
}

func main() {
	proxy := flag.String("proxy", "bin/malha-proxy", "the malha-proxy to measure")
	rounds := flag.Int("rounds", 7, "rounds; the median of the per-round ratios counts")
	seconds := flag.Int("seconds", 5, "seconds of load for each proxy in a round")
	output := flag.String("output", "docs/benchmarks.md", "where the table goes")
	flag.Parse()
	if err := run(*proxy, *rounds, *seconds, *output); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(proxy string, rounds, seconds int, output string) error {
	dir, err := os.MkdirTemp("", "malha-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	backend, err := startNginx(dir, "backend", 0, fmt.Sprintf("server { listen 127.0.0.1:%d; location / { return 200 %q; } }", ports[0], strings.Repeat("x", bodySize)))
	if err != nil {
		return err
	}
	defer stop(backend)

	subjects := []*subject{
		{name: "malha-proxy", version: version(proxy, "--version"), port: ports[1]},
		{name: "nginx", version: version("nginx", "-v"), port: ports[2]},
		{name: "haproxy", version: version("haproxy", "-v"), port: ports[3]},
	}
	if subjects[0].cmd, err = startMalha(dir, proxy, ports[1], ports[0]); err != nil {
		return err
	}
	defer stop(subjects[0].cmd)
	if subjects[1].cmd, err = startNginx(dir, "proxy", 1, fmt.Sprintf(`upstream b { server 127.0.0.1:%d; keepalive 256; keepalive_requests 100000000; }
	server { listen 127.0.0.1:%d; location / { proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection ""; } }`, ports[0], ports[2])); err != nil {
		return err
	}
	defer stop(subjects[1].cmd)
	if subjects[2].cmd, err = startHAProxy(dir, ports[3], ports[0]); err != nil {
		return err
	}
	defer stop(subjects[2].cmd)

	for _, s := range subjects {
		if err := waitFor(s.port); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if _, err := load(s.port, 1); err != nil { // warm up: connections, caches
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for r := range rounds {
		order := slices.Clone(subjects)
		if r%2 == 1 {
			slices.Reverse(order) // A B C, C B A: a drift of the machine favours nobody
		}
		for _, s := range order {
			m, err := measure(s, seconds)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.rounds = append(s.rounds, m)
			fmt.Printf("round %d  %-12s %6.2f µs/request  %8.0f requests/s  p99 %-8s RSS %5.1f MB\n", r+1, s.name, m.micros, m.rps, m.p99, float64(m.rssKiB)/1024)
		}
	}
	text := report(subjects, rounds, seconds)
	fmt.Print("\n", text)
	return os.WriteFile(output, []byte(text), 0o644)
}

// measure loads one proxy and divides the CPU time that the kernel counted for its process by the requests answered.
func measure(s *subject, seconds int) (round, error) {
	before, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return round{}, err
	}
	l, err := load(s.port, seconds)
	if err != nil {
		return round{}, err
	}
	after, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return round{}, err
	}
	return round{micros: float64((after - before).Nanoseconds()) / 1000 / float64(l.requests), rps: l.rps, p99: l.p99, rssKiB: rss(s.cmd.Process.Pid)}, nil
}

type loadResult struct {
	requests int
	rps      float64
	p99      string
}

var (
	reRequests = regexp.MustCompile(`(\d+) requests in`)
	reRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	reP99      = regexp.MustCompile(`99%\s+(\S+)`)
	reBad      = regexp.MustCompile(`Non-2xx[^\n]*|Socket errors[^\n]*`)
)

// load runs wrk on the first processor, where the backend lives too.
func load(port, seconds int) (loadResult, error) {
	cmd := exec.Command("taskset", "-c", "0", "wrk", "-t1", "-c", strconv.Itoa(connections), "-d", strconv.Itoa(seconds)+"s", "--latency",
		"-H", "Host: "+host, "-H", "User-Agent: bench/1.0", "-H", "Accept: */*", "-H", "Accept-Language: en", "-H", "X-Request-Id: 5f0c6c4e-6d7f-4a58-9f0f-1d6f3a1b2c3d",
		"-H", "Cookie: session=0123456789abcdef", "-H", "Accept-Encoding: gzip", "-H", "X-Tenant: blue", fmt.Sprintf("http://127.0.0.1:%d/api/items?page=2", port))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return loadResult{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	if bad := reBad.Find(out); bad != nil {
		return loadResult{}, fmt.Errorf("wrk saw failures: %s", bad)
	}
	req, rate := reRequests.FindSubmatch(out), reRate.FindSubmatch(out)
	if req == nil || rate == nil {
		return loadResult{}, fmt.Errorf("cannot read what wrk printed: %s", out)
	}
	n, _ := strconv.Atoi(string(req[1]))
	rps, _ := strconv.ParseFloat(string(rate[1]), 64)
	if n == 0 {
		return loadResult{}, errors.New("no request was answered")
	}
	l := loadResult{requests: n, rps: rps}
	if m := reP99.FindSubmatch(out); m != nil {
		l.p99 = string(m[1])
	}
	return l, nil
}

// cpuTime sums the run time of all threads of a process, as the scheduler counts it, in nanoseconds.
func cpuTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d is gone", pid)
	}
	var sum time.Duration
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

func rss(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

// startMalha runs malha-proxy from a plan of one sidecar: a listener, routes by header and prefix, one cluster; metrics are on.
func startMalha(dir, proxy string, port, backend int) (*exec.Cmd, error) {
	service := plan.ServiceLabels{Host: host, Name: "backend", Namespace: "default"}
	cluster := fmt.Sprintf("outbound|%d||%s", backend, host)
	p := plan.Plan{
		Node:      plan.Node{Name: ident.Name{Namespace: "default", Name: "bench"}, Role: plan.Sidecar},
		Listeners: []plan.Listener{{Name: "outbound|" + strconv.Itoa(backend), Bind: fmt.Sprintf("127.0.0.1:%d", port), Direction: plan.Outbound, Protocol: ident.HTTP, Host: host, Port: backend, Routes: "80"}},
		Routes: []plan.RouteTable{{Name: "80", Otherwise: plan.NotFound, Hosts: []plan.VirtualHost{{
			Name: host, Domains: []string{host}, Service: service,
			Routes: []plan.Route{
				{Name: "canary", Match: plan.Match{Headers: []plan.FieldMatch{{Name: "x-canary", Value: match.String{Kind: match.Exact, Value: "true"}}}}, Direct: &plan.DirectResponse{Status: 500}},
				{Name: "api", Match: plan.Match{Path: &match.String{Kind: match.Prefix, Value: "/api/"}}, Forward: []plan.Destination{{Cluster: cluster}}, Timeout: plan.Duration(10 * time.Second),
					Retry: &plan.Retry{Attempts: 2, On: plan.RetryConnectFailure | plan.RetryRefusedStream}},
			},
		}}}},
		Clusters:  []plan.Cluster{{Name: cluster, Host: host, Port: backend, Protocol: ident.HTTP, Service: service}},
		Endpoints: []plan.Endpoints{{Cluster: cluster, Endpoints: []plan.Endpoint{{Address: fmt.Sprintf("127.0.0.1:%d", backend)}}}},
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "plan.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return nil, err
	}
	return start(dir, "malha", 1, proxy, "--plan", file, "--admin", "127.0.0.1:0", "--concurrency", "1", "--access-log", "off")
}

func startNginx(dir, name string, cpu int, servers string) (*exec.Cmd, error) {
	conf := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/%[2]s.pid; error_log %[1]s/%[2]s.err;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_body_temp_path %[1]s/%[2]s.a; proxy_temp_path %[1]s/%[2]s.b; fastcgi_temp_path %[1]s/%[2]s.c; uwsgi_temp_path %[1]s/%[2]s.d; scgi_temp_path %[1]s/%[2]s.e;
%[3]s }
`, dir, name, servers)
	file := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	master := "on"
	if cpu == 1 {
		master = "off" // one process, so that its CPU time is all there is
	}
	return start(dir, name, cpu, "nginx", "-c", file, "-g", "master_process "+master+";")
}

func startHAProxy(dir string, port, backend int) (*exec.Cmd, error) {
	conf := fmt.Sprintf(`global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
  http-reuse always
frontend f
  bind 127.0.0.1:%d
  default_backend b
backend b
  server s 127.0.0.1:%d
`, port, backend)
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	return start(dir, "haproxy", 1, "haproxy", "-db", "-f", file)
}

// start runs a program on one processor, its output in a file.
func start(dir, name string, cpu int, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("taskset", append([]string{"-c", strconv.Itoa(cpu)}, args...)...) // taskset execs: the process id is the program's
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, cmd.Start()
}

func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(os.Interrupt)
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		_ = cmd.Process.Kill()
		<-done
	}
}

func waitFor(port int) error {
	for range 100 {
		if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
			return c.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("nothing listens on port %d after 5 s", port)
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }() // all are held until all are known
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func version(program, arg string) string {
	out, _ := exec.Command(program, arg).CombinedOutput()
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return strings.TrimSpace(string(line))
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

func report(subjects []*subject, rounds, seconds int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Benchmarks

Written by `+"`make bench`"+`. HTTP/1.1 keep-alive, %d connections, %d-byte answers, eight request headers, one worker each; the
proxy alone on one processor, the load (wrk) and the backend (nginx) on the other; %d rounds of %d s for each proxy, taken in turn and in
turned order. The figure of record is the CPU time that the kernel counted for the proxy process, divided by the requests answered; the ratio is
the median of the ratios within each round. nginx and HAProxy keep their upstream connections and write no log; malha-proxy runs with routing,
a timeout, retries and its metrics on, access log off.

Machine: %s, %d processors, %s.

| proxy | CPU µs/request (median) | min – max | requests/s | p99 | RSS MB | malha-proxy ÷ this |
|---|---|---|---|---|---|---|
`, connections, bodySize, rounds, seconds, cpuModel(), runtime.NumCPU(), runtime.Version())
	for _, s := range subjects {
		var micros, rps, ratio []float64
		for i, r := range s.rounds {
			micros, rps = append(micros, r.micros), append(rps, r.rps)
			ratio = append(ratio, subjects[0].rounds[i].micros/r.micros)
		}
		last := s.rounds[len(s.rounds)-1]
		fmt.Fprintf(&b, "| %s | %.2f | %.2f – %.2f | %.0f | %s | %.1f | %.2f |\n", s.name, median(micros), slices.Min(micros), slices.Max(micros), median(rps), last.p99, float64(last.rssKiB)/1024, median(ratio))
	}
	var better []float64
	for i := range subjects[0].rounds {
		better = append(better, subjects[0].rounds[i].micros/min(subjects[1].rounds[i].micros, subjects[2].rounds[i].micros))
	}
	fmt.Fprintf(&b, "\nAgainst the better of the two in each round: **%.2f ×** (goal: at most 1.3 ×).\n\nVersions:\n", median(better))
	for _, s := range subjects {
		fmt.Fprintf(&b, "- %s: %s\n", s.name, s.version)
	}
	return b.String()
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	m := regexp.MustCompile(`model name\s*:\s*(.+)`).FindSubmatch(b)
	if m == nil {
		return runtime.GOARCH
	}
	return string(m[1])
}
