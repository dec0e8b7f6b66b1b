package advisories

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// The soak measures what floods cost a proxy in a process of its own, and the client beside them: what other tests may not
// depend on, since it needs a quiet machine. `make soak` runs it.
const (
	soakSwitch = "MALHA_SOAK"
	// soakChild in the environment makes the test program a proxy, with its plan on standard input.
	soakChild = "MALHA_SOAK_PROXY"

	soakRounds = 7                      // each is a time without the flood and one with it; medians count
	soakTime   = 400 * time.Millisecond // of each of both
	soakPace   = 1 << 20                // bytes a second that an attacker sends
	soakGood   = 500                    // requests a second of the client that behaves
	soakGrain  = 500 * time.Microsecond // what the scheduler of a machine with two cores adds by itself
)

func TestMain(m *testing.M) {
	if os.Getenv(soakChild) == "" {
		os.Exit(m.Run())
	}
	if err := serveSoak(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serveSoak is the proxy: it says its address on standard output and serves until standard input ends.
func serveSoak() error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(line, &p); err != nil {
		return err
	}
	px := live.New(live.Options{Conn: conn.Defaults(), DrainTime: time.Second})
	if err := px.Apply(&p); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	fmt.Println(px.Status().Listeners[0].Address)
	return px.Run(ctx)
}

// newSoak starts a proxy of its own in front of the server at addr.
func newSoak(t *testing.T, addr, good string) (*lab, int) {
	t.Helper()
	p, err := json.Marshal(&plan.Plan{
		Listeners: []plan.Listener{{Name: "out", Bind: "127.0.0.1:0", Direction: plan.Outbound, Protocol: ident.HTTP, Routes: "t"}},
		Routes: []plan.RouteTable{{Name: "t", Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []plan.Route{
			{Name: "good", Match: plan.Match{Path: &match.String{Kind: match.Exact, Value: "/good"}}, Forward: to("good")},
			{Name: "default", Forward: to("a")},
		}}}}},
		Clusters: []plan.Cluster{{Name: "a", Host: "a", Port: 80, Protocol: ident.HTTP}, {Name: "good", Host: "good", Port: 80, Protocol: ident.HTTP}},
		Endpoints: []plan.Endpoints{
			{Cluster: "a", Endpoints: []plan.Endpoint{{Address: addr}}},
			{Cluster: "good", Endpoints: []plan.Endpoint{{Address: good}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), soakChild+"=1", "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	if _, err := stdin.Write(append(p, '\n')); err != nil {
		t.Fatal(err)
	}
	at, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, at: strings.TrimSpace(at)}, cmd.Process.Pid
}

// usage is the processor time of a process so far, and its peak of resident memory.
func usage(t *testing.T, pid int) (cpu time.Duration, rss int64) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, ticks := range f[11:13] { // utime, stime (proc(5)), in hundredths of a second
		n, err := strconv.Atoi(ticks)
		if err != nil {
			t.Fatal(err)
		}
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return cpu, n << 10
		}
	}
	t.Fatal("no peak of memory in /proc")
	return 0, 0
}

// behave asks at a constant rate for a time, and returns the 99th percentile of the answers' latencies, each from the
// moment when its request was due.
func (l *lab) behave(d time.Duration) time.Duration {
	c := l.dial()
	defer func() { _ = c.nc.Close() }()
	_ = c.nc.SetDeadline(time.Now().Add(d + patience))
	var all []time.Duration
	start := time.Now()
	for i := 0; ; i++ {
		due := start.Add(time.Duration(i) * time.Second / soakGood)
		if due.Sub(start) > d {
			break
		}
		time.Sleep(time.Until(due))
		c.send("GET /good HTTP/1.1\r\nhost: a\r\n\r\n")
		if m, _, err := c.read("GET"); err != nil || m.status != 200 {
			l.t.Errorf("the client that behaves got %v, %v", m, err)
			break
		}
		all = append(all, time.Since(due))
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

// honest is the flood that is none: requests that are answered. What it costs for a byte is what an attack is held to.
var honest = flood{name: "0 plain requests", endless: true, make: func(i uint32) []byte { return open(id(i), true, raw(get...)) }}

// A flood costs the proxy no more processor time for a byte than plain requests do, no more memory than the bound, and
// the client beside it at most the double of its 99th percentile, or what it has beside plain requests: a flood that opens
// requests at the endpoint up to its limit is load like any other. The times without it, in between, are the recovery.
func TestSoak(t *testing.T) {
	if os.Getenv(soakSwitch) == "" {
		t.Skip("set " + soakSwitch + "=1 on a quiet machine, or run `make soak`")
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer func() { _ = out.Flush() }()
	_, _ = fmt.Fprintln(out, "flood\tsent KB\tCPU ms/MB\tmemory KB\tp99 before\tduring\t")
	// What a megabyte of honest requests costs: milliseconds of processor time, and the percentile of the client beside them.
	var reference float64
	var beside time.Duration
	for i, f := range append([]flood{honest}, floods()...) {
		t.Run(f.name, func(t *testing.T) {
			o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
				if m.target == "/big" {
					_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n"+strings.Repeat("x", 1<<16))
					_, _ = io.Copy(io.Discard, nc)
					return done
				}
				return slow(m, nc, br)
			})
			l, pid := newSoak(t, o.addr, newOrigin(t, nil).addr)
			l.behave(soakTime) // warms up
			_, rss0 := usage(t, pid)
			var without, with []time.Duration
			var attack time.Duration // processor time, less what the client that behaves costs
			var n int64              // bytes sent
			for range soakRounds {
				cpu0, _ := usage(t, pid)
				without = append(without, l.behave(soakTime))
				cpu1, _ := usage(t, pid)

				sent, over := make(chan int64), time.Now().Add(soakTime)
				go func() {
					var n int64
					start := time.Now()
					l.pace = func(b int) bool {
						n += int64(b)
						time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second / soakPace)))
						return time.Now().Before(over)
					}
					for time.Now().Before(over) {
						f.run(l, true)
					}
					sent <- n
				}()
				with = append(with, l.behave(soakTime))
				n += <-sent
				cpu2, _ := usage(t, pid)
				attack += (cpu2 - cpu1) - (cpu1 - cpu0)
			}
			_, rss1 := usage(t, pid)
			before, during := median(without), median(with)
			perMB := float64(max(0, attack).Microseconds()) / 1000 / (float64(n) / (1 << 20))
			_, _ = fmt.Fprintf(out, "%s\t%d\t%.0f\t%d\t%v\t%v\t\n", f.name, n>>10, perMB, (rss1-rss0)>>10, before.Round(10*time.Microsecond), during.Round(10*time.Microsecond))
			if i == 0 {
				reference, beside = perMB, during
				return
			}
			if perMB > reference {
				t.Errorf("%.0f ms of processor time for a megabyte; plain requests cost %.0f", perMB, reference)
			}
			if grown := rss1 - rss0; grown > memoryFactor*n+memoryConstant {
				t.Errorf("memory grew by %d KB for %d KB", grown>>10, n>>10)
			}
			if during > max(2*before, beside)+soakGrain {
				t.Errorf("the 99th percentile of the client that behaves went from %v to %v", before, during)
			}
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
