package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// stallingServer answers every request at once, but for one that it lets wait: every answer behind it waits too.
func stallingServer(t *testing.T, request int, stall time.Duration) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		r := bufio.NewReader(c)
		for n := 0; ; {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if line != "\r\n" {
				continue
			}
			if n++; n == request {
				time.Sleep(stall)
			}
			if _, err := c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")); err != nil {
				return
			}
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// A closed loop would see one slow request and miss the many that it did not send meanwhile. Here 100 requests are due in
// half a second and half of these during the stall, so that the median request has waited too.
func TestNothingIsOmittedDuringAStall(t *testing.T) {
	const stall = 400 * time.Millisecond
	l, err := constantRate(stallingServer(t, 2, stall), 1, 200, 500*time.Millisecond) // 1 is the warm-up
	if err != nil {
		t.Fatal(err)
	}
	if l.Requests != 100 {
		t.Errorf("%v requests, want 100", l.Requests)
	}
	// The request that is due after x waits at least until the stall ends: 400 ms - x. 40 of 100 are due in the first 200 ms.
	if want := 350e3; l.P99 < want {
		t.Errorf("p99 is %v µs, want at least %v", l.P99, want)
	}
	if want := 100e3; l.P50 < want {
		t.Errorf("p50 is %v µs, want at least %v", l.P50, want)
	}
}

// A proxy that takes a connection and never answers is a failure, and not the end of all measuring.
func TestSilenceIsAFailure(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(ends[0]), unix.Close(ends[1]) }()
	o := &openLoop{request: []byte("GET / HTTP/1.1\r\n\r\n"), patience: 10 * time.Millisecond}
	if err := o.warm(&flow{fd: ends[0], in: make([]byte, 64)}); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("got %v", err)
	}
}

func TestAnswerLength(t *testing.T) {
	for in, want := range map[string]int{
		"":                       0,
		"HTTP/1.1 200 OK\r\nCon": 0,
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n":          41,
		"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1": 41,
		"HTTP/1.1 503 no\r\ncontent-length: 3\r\n\r\nabc":       -1,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n": -1,
	} {
		got, err := answerLength([]byte(in))
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d (%v), want %d", in, got, err, want)
		}
	}
}

// The clock of a process by its id is the same clock as our own.
func TestCPUTimeIsTheProcessClock(t *testing.T) {
	own := func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ts.Nano())
	}
	before := own()
	got, err := cpuTime(os.Getpid())
	after := own()
	if err != nil || got < before || got > after {
		t.Errorf("%s (%v), want between %s and %s", got, err, before, after)
	}
	if _, err := threadTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if m, err := memoryOf(os.Getpid()); err != nil || m.private <= 0 || m.private > m.rss {
		t.Errorf("memory %+v, %v", m, err)
	}
}

func TestRatiosAreOfRounds(t *testing.T) {
	a := &subject{rounds: []sample{{cpu: 1}, {cpu: 10}, {cpu: 3}}}
	b := &subject{rounds: []sample{{cpu: 2}, {cpu: 10}, {cpu: 1}}}
	c := &subject{rounds: []sample{{cpu: 4}, {cpu: 5}, {cpu: 6}}}
	if got := ratio(cpu, a, least, b, c); got != 2 { // 1/2, 10/5, 3/1
		t.Errorf("ratio %v, want 2", got)
	}
	if got := quantile([]time.Duration{1, 2, 3, 4}, 0.5); got != 2 {
		t.Errorf("p50 of 1..4 is %v, want 2", got)
	}
}

func TestGoalsAndReport(t *testing.T) {
	r := &result{id: "x", title: "X", method: "M.", columns: []metric{cpu}, subjects: []*subject{{name: "malha-proxy", rounds: []sample{{cpu: 9}}}, {name: "nginx", rounds: []sample{{cpu: 10}}}}}
	r.below("less", cpu, 0.95, "nginx", "haproxy")
	r.below("much less", cpu, 0.5, "nginx")
	r.below("absent", cpu, 0.5, "envoy")
	r.above("more", cpu, 0.8, "nginx")
	var verdicts []bool
	for _, g := range r.goals {
		verdicts = append(verdicts, g.reached())
	}
	if !slices.Equal(verdicts, []bool{true, false, true}) {
		t.Errorf("reached: %v", verdicts)
	}
	text := report(&bench{tools: &tools{}, rounds: 1, seconds: 1}, machine{}, []*result{r}, true)
	for _, want := range []string{"2 of 3 are reached", "| less | ≤ 0.95 × | 0.90 × | reached |", "| much less | ≤ 0.50 × | 0.90 × | **missed** |", "absent: not measured, envoy is not installed", "Not all cases"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q:\n%s", want, text)
		}
	}
}

func TestWorldPlanHasItsSize(t *testing.T) {
	p := worldPlan(1, 2, 100, 10)
	endpoints := 0
	for _, e := range p.Endpoints {
		endpoints += len(e.Endpoints)
	}
	if len(p.Clusters) != 100 || len(p.Routes[0].Hosts) != 100 || endpoints != 991 {
		t.Errorf("%d clusters, %d hosts, %d endpoints", len(p.Clusters), len(p.Routes[0].Hosts), endpoints)
	}
	in := inboundPlan(1, 2, ident.HTTP)
	if in.Listeners[0].TLS != plan.TLSStrict || fmt.Sprint(in.Policies[0].Rules[0].From[0].Principals[0].Value) != clientIdentity.Principal() {
		t.Errorf("%+v", in)
	}
}
