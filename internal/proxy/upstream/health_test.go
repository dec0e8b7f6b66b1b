package upstream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

func TestLocalErrorsApart(t *testing.T) {
	reset := Outcome{Err: stream.ErrReset}
	o := &plan.Outlier{Consecutive5xx: 2, ConsecutiveGatewayError: 2, SplitLocal: true, ConsecutiveLocal: 4, MaxEjectionPercent: 100}
	_, e := outliers(newSet(t, Options{}), o, 3)
	reportN(e[0], 3, reset)
	if e[0].ejected.Load() {
		t.Error("local errors count as gateway errors")
	}
	reportN(e[0], 1, Outcome{Status: 500}) // the endpoint answered, so that connections are good
	reportN(e[0], 3, reset)
	if e[0].ejected.Load() {
		t.Error("an answer did not reset the local errors")
	}
	reportN(e[0], 1, reset)
	if !e[0].ejected.Load() {
		t.Error("four local errors in a row did not eject")
	}
	reportN(e[1], 1, Outcome{Status: 500})
	reportN(e[1], 1, reset)
	reportN(e[1], 1, Outcome{Status: 500})
	if !e[1].ejected.Load() {
		t.Error("a local error between reset the endpoint's own")
	}
	_, e = outliers(newSet(t, Options{}), &plan.Outlier{Consecutive5xx: 2, SplitLocal: true}, 3)
	reportN(e[0], 100, reset)
	if e[0].ejected.Load() {
		t.Error("local errors eject although they are off")
	}
}

func TestStatusesThatCount(t *testing.T) {
	o := &plan.Outlier{Consecutive5xx: 2, Statuses: []plan.StatusRange{{Min: 429, Max: 429}, {Min: 501, Max: 510}}, MaxEjectionPercent: 100}
	_, e := outliers(newSet(t, Options{}), o, 6)
	for i, tt := range []struct {
		status int
		want   bool
	}{{429, true}, {428, false}, {500, false}, {501, true}, {510, true}, {511, false}} {
		reportN(e[i], 2, Outcome{Status: tt.status})
		if e[i].ejected.Load() != tt.want {
			t.Errorf("status %d: ejected %v", tt.status, !tt.want)
		}
	}
}

func TestSuccessRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &plan.Outlier{SuccessRate: 0.8, Window: plan.Duration(20 * time.Second), MinRequests: 10, MaxEjectionPercent: 100}
		_, e := outliers(newSet(t, Options{}), o, 5)
		ok, bad := Outcome{Status: 200}, Outcome{Status: 500}
		mix := func(e *Endpoint, good, failed int) {
			reportN(e, good, ok)
			reportN(e, failed, bad)
		}
		if mix(e[0], 0, 9); e[0].ejected.Load() {
			t.Error("ejected by fewer requests than MinRequests")
		}
		if mix(e[0], 0, 1); !e[0].ejected.Load() || e[0].why != "success rate" {
			t.Errorf("ten failures of ten did not eject: %q", e[0].why)
		}
		if mix(e[1], 8, 2); e[1].ejected.Load() {
			t.Error("ejected at the success rate that is asked for")
		}
		if mix(e[1], 0, 1); !e[1].ejected.Load() {
			t.Error("8 of 11 did not eject")
		}
		// Old ones count no more, of the last seconds all do.
		mix(e[2], 9, 0)
		time.Sleep(10 * time.Second)
		mix(e[2], 0, 2)
		if e[2].ejected.Load() {
			t.Error("what was 10 s ago does not count in a window of 20")
		}
		time.Sleep(30 * time.Second)
		mix(e[3], 0, 9)
		time.Sleep(30 * time.Second)
		mix(e[3], 9, 0)
		if mix(e[3], 0, 1); e[3].ejected.Load() {
			t.Error("what was 30 s ago counts in a window of 20")
		}
		reportN(e[4], 10, Outcome{Status: 429})
		if !e[4].ejected.Load() {
			t.Error("429 is a success")
		}
	})
}

// probing is a cluster of one sick and one good endpoint, by Linkerd's failure accrual.
func probing(t *testing.T, sick func() int) (*Cluster, *Endpoint, *atomic.Int64) {
	p := newPipeNet()
	p.serve["good:1"] = status(ok200)
	asked := new(atomic.Int64)
	p.serve["sick:1"] = status(func() int { asked.Add(1); return sick() })
	c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP, Balancer: plan.RoundRobin, Outlier: &plan.Outlier{
		Consecutive5xx: 3, BaseEjection: plan.Duration(time.Second), MaxEjection: plan.Duration(8 * time.Second), Probe: true, MaxEjectionPercent: 100}}, "good:1", "sick:1")
	return c, c.core().state.Load().endpoints[1], asked
}

// underProbe is such a cluster with a probe of its sick endpoint under way.
func underProbe(t *testing.T) (*Cluster, *Endpoint, *Lease) {
	t.Helper()
	c, e, _ := probing(t, func() int { return 500 })
	for range 6 {
		_, _, _, _ = get(c, Attempt{}, "/")
	}
	time.Sleep(1100 * time.Millisecond)
	synctest.Wait()
	for range 3 {
		l := acquire(t, c, Attempt{})
		if l.probe && l.Endpoint == e {
			return c, e, l
		}
		finish(t, l)
	}
	t.Fatal("there is no probe")
	return nil, nil, nil
}

func TestProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var code atomic.Int64
		code.Store(500)
		c, e, asked := probing(t, func() int { return int(code.Load()) })
		load := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if _, _, _, err := get(c, Attempt{}, "/"); err != nil {
					t.Fatal(err)
				}
			}
		}
		load(900 * time.Millisecond)
		if asked.Load() != 3 {
			t.Fatalf("%d requests until it was ejected", asked.Load())
		}
		// One probe after 1 s, then after 2, 4, 8, 8, 8 more: 31 s.
		load(31*time.Second + 500*time.Millisecond)
		if n := asked.Load() - 3; n != 6 {
			t.Errorf("%d probes in 31 s, want 6", n)
		}
		if st := c.set.Snapshot().Clusters[0].Endpoints[1]; !st.Ejected || st.Why != "its probe failed" || st.Until.IsZero() {
			t.Errorf("the snapshot shows %+v", st)
		}
		code.Store(429) // who asks to be left alone is
		load(8 * time.Second)
		if !e.ejected.Load() {
			t.Error("a probe that was answered 429 let it back")
		}
		code.Store(200)
		load(9 * time.Second)
		if e.aside() || e.trial.Load() != noTrial || e.ejections != 0 {
			t.Error("a good probe did not let it back, with its history forgotten")
		}
		before := asked.Load()
		load(time.Second)
		if n := asked.Load() - before; n < 40 {
			t.Errorf("it is back and got %d of 100 requests", n)
		}
	})
}

// The head of an answer decides a probe: its body, a tunnel's say, may be hours long.
func TestProbeIsDecidedByTheHead(t *testing.T) {
	for status, back := range map[int]bool{200: true, 101: true, 500: false, 429: false} {
		synctest.Test(t, func(t *testing.T) {
			_, e, probe := underProbe(t)
			probe.Answered(status)
			if e.aside() == back || e.trial.Load() != noTrial {
				t.Errorf("after %d: aside %v, trial %d", status, e.aside(), e.trial.Load())
			}
			ejections := e.ejections
			probe.Cancel(stream.Cancelled)
			probe.Done(Outcome{Status: status, Err: stream.ErrCancelled}) // the client of a tunnel leaves
			if e.aside() == back || e.ejections != ejections {
				t.Errorf("after the end of %d: aside %v, %d ejections", status, e.aside(), e.ejections)
			}
		})
	}
}

// While a probe is under way nothing else goes there, and one that says nothing is made again.
func TestOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, e, probe := underProbe(t)
		if !c.set.Snapshot().Clusters[0].Endpoints[1].Probing {
			t.Error("the snapshot does not show the probe")
		}
		for range 20 {
			l := acquire(t, c, Attempt{})
			if l.Endpoint == e {
				t.Fatal("another request went to the endpoint that is being probed")
			}
			finish(t, l)
		}
		e.report(c.core().state.Load(), Outcome{Status: 200}) // of a request of before
		if e.trial.Load() != isTrying {
			t.Error("a request of before decided")
		}
		probe.Cancel(stream.Cancelled)
		probe.Done(Outcome{Err: stream.ErrCancelled})
		if e.trial.Load() != mayTry {
			t.Error("a probe that said nothing is not made again")
		}
	})
}

func TestJitterOfEjections(t *testing.T) {
	o := &plan.Outlier{Consecutive5xx: 1, BaseEjection: plan.Duration(10 * time.Second), Jitter: 0.5, MaxEjectionPercent: 100}
	_, eps := outliers(newSet(t, Options{}), o, 20)
	seen := make(map[time.Duration]bool)
	for _, e := range eps {
		reportN(e, 1, Outcome{Status: 500})
		d := e.until.Sub(e.ejectedAt)
		if d < 10*time.Second || d > 15*time.Second {
			t.Errorf("an ejection of %v", d)
		}
		seen[d] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d different times of 20", len(seen))
	}
}

func TestMaxEjection(t *testing.T) {
	o := &plan.Outlier{BaseEjection: plan.Duration(time.Second), MaxEjection: plan.Duration(5 * time.Second)}
	if got := ejection(o, 9); got != 5*time.Second {
		t.Errorf("the ninth ejection lasts %v", got)
	}
	o.Probe = true
	for n, want := range []time.Duration{1, 1, 2, 4, 5, 5} {
		if got := ejection(o, uint32(n)); got != want*time.Second {
			t.Errorf("probe %d: %v, want %v s", n, got, int(want))
		}
	}
	if got := ejection(o, 1<<31); got != 5*time.Second {
		t.Errorf("after very many probes: %v", got)
	}
}

func TestHealthChecksOfHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		var code, asked atomic.Int64
		code.Store(200)
		var heads []string
		p.serve["a:1"] = func(nc net.Conn, r *bufio.Reader, _ int) bool {
			req, err := http.ReadRequest(r)
			if err != nil {
				return false
			}
			if asked.Add(1) == 1 {
				heads = append(heads, req.Method, req.URL.Path, req.Host)
			}
			if code.Load() == 0 {
				time.Sleep(time.Hour)
			}
			_, err = fmt.Fprintf(nc, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", code.Load())
			return err == nil
		}
		p.serve["b:1"] = status(ok200)
		s := newSet(t, Options{Dial: p.dial})
		c := only(s, plan.Cluster{Protocol: ident.HTTP, Check: &plan.HealthCheck{Path: "/ready", Host: "health.example",
			Interval: plan.Duration(10 * time.Second), Timeout: plan.Duration(2 * time.Second), Unhealthy: 3, Healthy: 2}}, "a:1", "b:1")
		e := c.core().state.Load().endpoints[0]
		time.Sleep(2 * time.Second) // checked before the first use
		synctest.Wait()
		if !slices.Equal(heads, []string{"GET", "/ready", "health.example"}) {
			t.Fatalf("the check asked %q", heads)
		}
		sickAfter := func(what string) (checks int64) {
			before := asked.Load()
			for range 100 {
				if e.sick.Load() {
					return asked.Load() - before
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}
			t.Fatalf("%s: it was never found to be sick: %+v", what, s.Snapshot().Clusters[0])
			return 0
		}
		wellAfter := func() int64 {
			before := asked.Load()
			for range 100 {
				if !e.sick.Load() {
					return asked.Load() - before
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}
			t.Fatal("it was never found to be well again")
			return 0
		}
		code.Store(500)
		if n := sickAfter("500"); n != 3 {
			t.Errorf("sick after %d checks, want 3", n)
		}
		if got := picks(t, c, Attempt{}, 20); got["b:1"] != 20 {
			t.Errorf("picked %v", got)
		}
		st := s.Snapshot().Clusters[0]
		if !st.Endpoints[0].Sick || st.Endpoints[0].Why != "health check: status 500" || st.ChecksFailedTotal != 3 || st.ChecksTotal < 6 {
			t.Errorf("the snapshot shows %+v", st)
		}
		code.Store(204)
		if n := wellAfter(); n != 2 {
			t.Errorf("well after %d checks, want 2", n)
		}
		if got := picks(t, c, Attempt{}, 50); len(got) != 2 {
			t.Errorf("picked %v", got)
		}
		code.Store(302) // as good as 200, for Kubernetes
		time.Sleep(time.Minute)
		synctest.Wait()
		if e.sick.Load() {
			t.Error("302 is sick")
		}
		code.Store(404)
		sickAfter("404")
		code.Store(200)
		wellAfter()
		code.Store(0) // silence
		sickAfter("silence")
		if why := s.Snapshot().Clusters[0].Endpoints[0].Why; why != "health check: no answer in time" {
			t.Errorf("of silence: %q", why)
		}
		// Without checks it is well.
		only(s, plan.Cluster{Protocol: ident.HTTP}, "a:1", "b:1")
		if e.sick.Load() {
			t.Error("it is sick although nobody checks")
		}
		before := asked.Load()
		time.Sleep(time.Minute)
		synctest.Wait()
		if asked.Load() != before {
			t.Error("checks go on")
		}
		time.Sleep(2 * time.Hour) // the handlers that are silent
	})
}

func TestHealthCheckTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		var times []time.Time
		p.serve["a:1"] = func(net.Conn, *bufio.Reader, int) bool { return false }
		dial := p.dial
		s := newSet(t, Options{Dial: dial})
		only(s, plan.Cluster{Protocol: ident.TCP, Check: &plan.HealthCheck{Interval: plan.Duration(20 * time.Second)}}, "a:1")
		start := time.Now()
		for n := 0; len(times) < 6; time.Sleep(100 * time.Millisecond) {
			if d := p.dialled(); d > n {
				n = d
				times = append(times, time.Now())
			}
		}
		if d := times[0].Sub(start); d > 1200*time.Millisecond {
			t.Errorf("the first check came after %v", d)
		}
		even := true
		for i := 1; i < len(times); i++ {
			d := times[i].Sub(times[i-1])
			if d < 17*time.Second || d > 23*time.Second {
				t.Errorf("%v between two checks", d)
			}
			even = even && d == times[1].Sub(times[0])
		}
		if even {
			t.Error("there is no jitter")
		}
	})
}

func TestHealthChecksOfTCPAndTheirBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet() // nobody is there: dials hang until their time is up
		s := newSet(t, Options{Dial: p.dial})
		var addrs []string
		for i := range 100 {
			addrs = append(addrs, fmt.Sprintf("e%03d:1", i))
		}
		c := only(s, plan.Cluster{Protocol: ident.TCP, Check: &plan.HealthCheck{Interval: plan.Duration(time.Minute), Timeout: plan.Duration(time.Second), Unhealthy: 1}}, addrs...)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if n := len(s.checking); n > checksAtOnce || p.dialled() > 2*checksAtOnce {
			t.Errorf("%d checks at once, %d dials", n, p.dialled())
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if _, err := c.Acquire(&Attempt{}); !errors.Is(err, errAllEjected) {
			t.Errorf("with all of them sick: %v", err)
		}
		if st := s.Snapshot().Clusters[0]; st.ChecksFailedTotal != 100 {
			t.Errorf("%d checks failed", st.ChecksFailedTotal)
		}
	})
}

func TestHealthChecksOfGRPC(t *testing.T) {
	var answer atomic.Pointer[[]byte]
	var asked atomic.Pointer[string]
	set := func(b ...byte) { answer.Store(&b) }
	set(8, 1)
	a := newApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		q := fmt.Sprintf("%s %s %s %q %d", r.Method, r.URL.Path, r.Header.Get("Content-Type"), body, r.ProtoMajor)
		asked.Store(&q)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "grpc-status")
		msg := *answer.Load()
		_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...))
		w.Header().Set("grpc-status", "0")
	}))
	s := newSet(t, Options{})
	c := only(s, plan.Cluster{Protocol: ident.GRPC, Check: &plan.HealthCheck{GRPC: true, Host: "shop.Cart", Interval: plan.Duration(20 * time.Millisecond), Unhealthy: 1, Healthy: 1}}, a.addr())
	e := c.core().state.Load().endpoints[0]
	eventually(t, "a check", func() bool { return c.core().counted.checks.Load() > 1 })
	if q, want := *asked.Load(), `POST /grpc.health.v1.Health/Check application/grpc "\x00\x00\x00\x00\v\n\tshop.Cart" 2`; q != want {
		t.Errorf("the check asked %s\nwant %s", q, want)
	}
	if e.sick.Load() {
		t.Error("SERVING is sick")
	}
	for _, tt := range []struct {
		answer []byte
		why    string
	}{{[]byte{8, 2}, "NOT_SERVING"}, {nil, "UNKNOWN"}, {[]byte{8}, "cut off"}, {[]byte{0x12, 1, 1}, "not a HealthCheckResponse"}} {
		set(tt.answer...)
		eventually(t, tt.why, e.sick.Load)
		if got := s.Snapshot().Clusters[0].Endpoints[0].Why; !strings.HasPrefix(got, "health check: ") || !strings.HasSuffix(got, tt.why) {
			t.Errorf("%v: %s", tt.answer, got)
		}
		set(8, 1)
		eventually(t, "well again", func() bool { return !e.sick.Load() })
	}
}

func TestChecksSpeakWhatTheClusterDoes(t *testing.T) {
	for protocol, want := range map[ident.Protocol]int{ident.HTTP: 1, ident.HTTP2: 2} {
		major := make(chan int, 1)
		a := newApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case major <- r.ProtoMajor:
			default:
			}
		}))
		s := newSet(t, Options{})
		only(s, plan.Cluster{Protocol: protocol, Check: &plan.HealthCheck{Path: "/", Interval: plan.Duration(50 * time.Millisecond)}}, a.addr())
		if got := <-major; got != want {
			t.Errorf("%s: a check by HTTP/%d", protocol, got)
		}
		s.put(nil, nil)
	}
	checkGoroutines(t)
}

// A check may ask another port, in plaintext, while requests go on to the endpoint's own.
func TestHealthChecksOfAnotherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		var asked atomic.Int64
		p.serve["a:9"] = status(func() int { asked.Add(1); return 503 })
		p.serve["a:1"] = status(ok200)
		c := only(newSet(t, Options{Dial: p.dial}), plan.Cluster{Protocol: ident.HTTP2, Check: &plan.HealthCheck{Path: "/", Port: 9, Unhealthy: 1}}, "a:1")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if asked.Load() != 1 || !c.core().state.Load().endpoints[0].sick.Load() {
			t.Errorf("the other port was asked %d times", asked.Load())
		}
	})
}

// An endpoint that comes later is checked as soon as the first ones were.
func TestNewEndpointsAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		p.serve["a:1"], p.serve["b:1"] = status(ok200), status(ok200)
		s := newSet(t, Options{Dial: p.dial})
		check := plan.Cluster{Protocol: ident.HTTP, Check: &plan.HealthCheck{Path: "/", Interval: plan.Duration(time.Hour)}}
		only(s, check, "a:1")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		c := only(s, check, "a:1", "b:1")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := c.core().counted.checks.Load(); n != 2 {
			t.Errorf("%d checks, want one of each", n)
		}
	})
}

// Close waits for no endpoint that is silent.
func TestCloseEndsChecksAndTunnels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		for _, a := range []string{"a:1", "b:1"} {
			p.serve[a] = func(_ net.Conn, r *bufio.Reader, _ int) bool {
				_, err := http.ReadRequest(r)
				return err == nil // and never an answer
			}
		}
		s := New(Options{Dial: p.dial})
		minute := plan.Duration(time.Minute)
		s.put([]plan.Cluster{
			{Name: "a", Protocol: ident.HTTP, Check: &plan.HealthCheck{Path: "/", Timeout: minute, Interval: minute}},
			{Name: "b", Protocol: ident.TCP, Tunnel: &plan.Tunnel{Host: "x", Port: 1}, ConnectTimeout: minute},
		}, []plan.Endpoints{{Cluster: "a", Endpoints: []plan.Endpoint{{Address: "a:1"}}}, {Cluster: "b", Endpoints: []plan.Endpoint{{Address: "b:1"}}}})
		failed := make(chan error)
		go func() {
			_, _, err := s.Cluster("b").Dial(time.Time{})
			failed <- err
		}()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		start := time.Now()
		if err := s.Close(t.Context()); err != nil || time.Since(start) > time.Second {
			t.Errorf("Close took %v: %v", time.Since(start), err)
		}
		if err := <-failed; err == nil {
			t.Error("the tunnel stands")
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the tunnel was waited for %v", d)
		}
	})
}

// What clients send as their session is foreign too.
func FuzzSessionToken(f *testing.F) {
	for _, s := range []string{"", "00", "0011223344556677", "00112233445566778899aabbccddeeff00112233", "zz"} {
		f.Add([]byte(s))
	}
	plain, idle := newSet(f, Options{}), newSet(f, Options{})
	c := only(plain, plan.Cluster{Session: &plan.Session{}}, "a:1", "b:1").core()
	d := only(idle, plan.Cluster{Session: &plan.Session{Idle: plan.Duration(time.Minute)}}, "a:1", "b:1").core()
	f.Fuzz(func(t *testing.T, token []byte) {
		for _, k := range []*core{c, d} {
			if e := k.session(k.state.Load(), k.state.Load().plan.Session, token); e != nil {
				t.Errorf("%q leads to %s", token, e.Address())
			}
		}
	})
}
