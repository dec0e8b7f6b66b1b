package advisories

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// The soak measures what floods cost a proxy in a process of its own, and the client beside them: what other tests may not
// depend on, since it needs a quiet machine. `make soak` runs it.
//
// Three processes: the proxy has a processor for itself where there are two. The client that behaves, with the server that
// answers it, shares the other one with the attacker, and comes first there: what the attacker's own work does to the
// machine is not the proxy's doing.
const (
	soakSwitch = "MALHA_SOAK"
	// soakPart in the environment makes the test program one of the other two processes.
	soakPart = "MALHA_SOAK_PART"
	// soakLast is the number of the proxy's processor. What a process inherits does not tell: the attacker may not use that one.
	soakLast = "MALHA_SOAK_LAST"

	soakRounds = 5                      // each is a time without a flood, one with plain requests and one with the flood; medians count
	soakTime   = time.Second            // of each of the three
	soakPace   = 1 << 20                // bytes a second that an attacker sends
	soakGood   = 500                    // requests a second of the client that behaves
	soakGrain  = 200 * time.Microsecond // what a wake-up may take by itself
	soakNice   = 19
)

func TestMain(m *testing.M) {
	part := map[string]func(*bufio.Reader) error{"": nil, "proxy": soakProxy, "client": soakClient}[os.Getenv(soakPart)]
	if part == nil {
		os.Exit(m.Run())
	}
	if err := part(bufio.NewReader(os.Stdin)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// soakProxy serves the plan in the first line of its input, on the last processor that it may use. It says its address
// and ends with its input.
func soakProxy(in *bufio.Reader) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := errors.Join(placeSoak(true), comeFirst()); err != nil {
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

// soakClient serves /good and says where. For each line of its input, an address, it asks there for /good at a constant rate
// for soakTime and says the 99th percentile of the latencies in nanoseconds, each from the moment when its request was due.
func soakClient(in *bufio.Reader) error {
	if err := errors.Join(placeSoak(false), comeFirst()); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "good") })}
	go func() { _ = server.Serve(ln) }()
	defer func() { _ = server.Close() }()
	fmt.Println(ln.Addr())
	for {
		addr, err := in.ReadString('\n')
		if err != nil {
			return nil //nolint:nilerr // the end of the input is the end
		}
		p99, err := behave(strings.TrimSpace(addr))
		if err != nil {
			return fmt.Errorf("the client that behaves: %w", err)
		}
		fmt.Println(int64(p99))
	}
}

func behave(addr string) (time.Duration, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(soakTime + patience))
	br := bufio.NewReader(nc)
	var all []time.Duration
	start := time.Now()
	for i := range int(soakTime * soakGood / time.Second) {
		due := start.Add(time.Duration(i) * time.Second / soakGood)
		if early := time.Until(due); early > 0 {
			time.Sleep(early)
			due = time.Now() // sleeping too long, by a millisecond at times, is nobody else's doing
		}
		if _, err := io.WriteString(nc, "GET /good HTTP/1.1\r\nhost: a\r\n\r\n"); err != nil {
			return 0, err
		}
		m, err := http.ReadResponse(br, nil)
		if err != nil {
			return 0, err
		}
		if _, err := io.Copy(io.Discard, m.Body); err != nil {
			return 0, err
		}
		if m.StatusCode != 200 {
			return 0, fmt.Errorf("status %d", m.StatusCode)
		}
		all = append(all, time.Since(due))
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}

// lastProcessor is the number of the last processor that this process may use, "" when there is no other.
func lastProcessor(t *testing.T) string {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &may); err != nil {
		t.Fatal(err)
	}
	if may.Count() < 2 {
		return ""
	}
	last := len(may)*64 - 1
	for !may.IsSet(last) {
		last--
	}
	return strconv.Itoa(last)
}

// placeSoak gives the process of the proxy the last processor (soakLast), and the others the rest. With one processor they share it.
func placeSoak(proxy bool) error {
	last, err := strconv.Atoi(os.Getenv(soakLast))
	if err != nil {
		return nil //nolint:nilerr // there is but one
	}
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &may); err != nil {
		return err
	}
	if proxy {
		may.Zero()
		may.Set(last)
	} else {
		may.Clear(last)
	}
	return everyThread(func(id int) error { return unix.SchedSetaffinity(id, &may) })
}

// comeFirst puts this process before whatever else the machine does (sched(7), SCHED_FIFO), where that is allowed and there is
// another processor for the rest: what is measured is the proxy then, also on a machine with other work. Else it has the usual
// priority.
func comeFirst() error {
	first := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	return everyThread(func(id int) error {
		if os.Getenv(soakLast) != "" && unix.SchedSetAttr(id, &first, 0) == nil {
			return nil
		}
		return allowed(unix.Setpriority(unix.PRIO_PROCESS, id, 0))
	})
}

// everyThread does something for each thread of this process; new ones inherit it.
func everyThread(do func(id int) error) error {
	for range 2 { // those that were begun during the first time
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, e := range threads {
			id, err := strconv.Atoi(e.Name())
			if err != nil {
				return err
			}
			if err := do(id); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// allowed drops the refusal of a priority that only root may set.
func allowed(err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// soakProcess is one of the processes, and its lines.
type soakProcess struct {
	t   testing.TB
	pid int
	in  io.Writer
	out *bufio.Reader
}

// startSoak starts a process, which gets a line first when there is one, and returns the address that it says.
func startSoak(t testing.TB, part, line string) (*soakProcess, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), soakPart+"="+part, "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // which also comes when this process is killed: the end of its input ends it
		_ = in.Close()
		_ = cmd.Wait()
	})
	p := &soakProcess{t: t, pid: cmd.Process.Pid, in: in, out: bufio.NewReader(out)}
	return p, p.ask(line)
}

// ask sends a line unless it is empty, and returns the line that comes back.
func (p *soakProcess) ask(line string) string {
	p.t.Helper()
	if line != "" {
		if _, err := io.WriteString(p.in, line+"\n"); err != nil {
			p.t.Fatal(err)
		}
	}
	answer, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("a process of the soak has ended: %v", err)
	}
	return strings.TrimSpace(answer)
}

// behave is what the client says of a time beside whatever else the proxy at addr has to do.
func (p *soakProcess) behave(addr string) time.Duration {
	p.t.Helper()
	n, err := strconv.ParseInt(p.ask(addr), 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return time.Duration(n)
}

// usage is the processor time of the process so far, by its own clock, and its peak of resident memory.
func (p *soakProcess) usage() (cpu time.Duration, rss int64) {
	p.t.Helper()
	var ts unix.Timespec
	// clock_getcpuclockid(3): (~pid << 3) | 2.
	if err := unix.ClockGettime(int32(^p.pid<<3|2), &ts); err != nil {
		p.t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for l := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return time.Duration(ts.Nano()), n << 10
		}
	}
	p.t.Fatal("no peak of memory in /proc")
	return 0, 0
}

// newSoak starts a proxy in front of the servers at two addresses.
func newSoak(t *testing.T, addr, good string) (*lab, *soakProcess) {
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
	proxy, at := startSoak(t, "proxy", string(p))
	return &lab{t: t, at: at}, proxy
}

// honest is the flood that is none: requests that are answered. What it costs for a byte is what an attack is held to; those that
// take a connection each, to requests that do.
var (
	honest      = flood{name: "plain requests", endless: true, make: func(i uint32) []byte { return open(id(i), true, raw(get...)) }}
	honestKnock = flood{name: "plain requests", knock: "GET /plain HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"}
)

// knockBytes is what a connection counts for, beside its bytes: making and ending it costs both sides.
const knockBytes = 1 << 10

// knockFactor is how much more a byte of theirs may cost: bodies in chunks of a byte are taken apart and put together again.
const knockFactor = 2

// knocks are HTTP/1 connections of which each is refused, or waits for what does not come, or is as odd as is allowed. Responses that
// nobody reads are not among them: what they cost does not hang on bytes that are sent (TestUnreadResponses bounds it).
func knocks() []flood {
	const head = "POST /knock HTTP/1.1\r\nhost: a\r\n"
	long := strings.Repeat("n", 64<<10)
	return []flood{
		{name: "32 both lengths", knock: head + "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"},
		{name: "35 names of 64 KB", knock: head + long + ": v\r\n\r\n"},
		{name: "37 chunk sizes", knock: head + "transfer-encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 2000) + "x\r\n"},
		{name: "39 chunk extensions", knock: head + "transfer-encoding: chunked\r\n\r\n" + strings.Repeat("1;"+long[:1000]+"\r\nx\r\n", 64)},
		{name: "41 folded lines", knock: head + "x: y\r\n" + strings.Repeat(" z\r\n", 1000) + "\r\n"},
		{name: "145 nothing", holds: true},
		{name: "145 half a head", knock: head, holds: true},
		{name: "145 half a body", knock: head + "content-length: 10\r\n\r\nabc", holds: true},
		{name: "147 targets of 64 KB", knock: "GET /" + long + " HTTP/1.1\r\nhost: a\r\n\r\n"},
		{name: "151 cookies", knock: "GET /plain HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncookie: " + strings.Repeat("a=;", 15000) + "\r\n\r\n"},
		{name: "152 queries", knock: "GET /plain?" + strings.Repeat("%61&", 4000) + " HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"},
	}
}

// knocking makes connections until the pace says that it is enough.
func (f *flood) knocking(l *lab) {
	var held []net.Conn
	for more := true; more; {
		nc, err := net.Dial("tcp", l.at)
		if err != nil {
			l.t.Error(err)
			return
		}
		_ = nc.SetDeadline(time.Now().Add(patience))
		_ = nc.(*net.TCPConn).SetReadBuffer(4096)
		_, _ = io.WriteString(nc, f.knock)
		if f.holds {
			held = append(held, nc)
		} else {
			_, _ = io.Copy(io.Discard, nc)
			_ = nc.Close()
		}
		more = l.pace(len(f.knock) + knockBytes)
	}
	for _, nc := range held {
		_ = nc.(*net.TCPConn).SetLinger(0)
		_ = nc.Close()
	}
}

// spell is what a time beside a flood cost: medians of the rounds.
type spell struct {
	sent int64         // bytes, of all rounds
	cpu  time.Duration // of the proxy for a megabyte, less what the client that behaves costs
	p99  time.Duration // of the client that behaves
}

// soak takes turns without a flood and with each of the floods.
func soak(l *lab, proxy, client *soakProcess, floods ...*flood) (without time.Duration, with []spell, grown int64) {
	client.behave(l.at) // warms up
	_, rss := proxy.usage()
	var alone []time.Duration
	cpu, p99 := make([][]time.Duration, len(floods)), make([][]time.Duration, len(floods))
	with = make([]spell, len(floods))
	for range soakRounds {
		before, _ := proxy.usage()
		alone = append(alone, client.behave(l.at))
		after, _ := proxy.usage()
		idle := after - before
		for i, f := range floods {
			sent, start := make(chan int64), time.Now()
			over := start.Add(soakTime)
			before, _ = proxy.usage()
			go func() {
				var n int64
				l.pace = func(b int) bool {
					n += int64(b)
					time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second / soakPace)))
					return time.Now().Before(over)
				}
				for time.Now().Before(over) {
					if f.make == nil {
						f.knocking(l)
					} else {
						f.run(l, true)
					}
				}
				sent <- n
			}()
			p99[i] = append(p99[i], client.behave(l.at))
			n := <-sent
			after, _ = proxy.usage()
			with[i].sent += n
			cpu[i] = append(cpu[i], time.Duration(float64(max(0, after-before-idle))/float64(max(1, n))*(1<<20)))
		}
	}
	for i := range with {
		with[i].cpu, with[i].p99 = median(cpu[i]), median(p99[i])
	}
	_, peak := proxy.usage()
	return median(alone), with, peak - rss
}

// A flood costs the proxy no more processor time for a byte than plain requests do (knockFactor as much over HTTP/1), no more memory than
// the bound, and the client beside it at most the double of its 99th percentile, or what it has beside plain requests at the same rate of
// bytes: a flood that opens requests up to its limit is load like any other. The times without it, in between, are the recovery.
func TestSoak(t *testing.T) {
	if os.Getenv(soakSwitch) == "" {
		t.Skip("set " + soakSwitch + "=1 on a quiet machine, or run `make soak`")
	}
	t.Setenv(soakLast, lastProcessor(t))
	client, good := startSoak(t, "client", "")
	if err := errors.Join(placeSoak(false), everyThread(func(id int) error { return unix.Setpriority(unix.PRIO_PROCESS, id, soakNice) })); err != nil {
		t.Fatal(err)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(columns ...any) {
		_, _ = fmt.Fprintln(out, strings.TrimSuffix(fmt.Sprintf(strings.Repeat("%v\t", len(columns)), columns...), "\t"))
	}
	row("flood", "sent KB", "CPU ms/MB", "plain requests", "CPU", "memory KB", "at most", "memory", "p99 alone", "beside plain requests", "beside the flood", "p99")
	passed, all := 0, append(floods(), knocks()...)
	for _, f := range all {
		t.Run(f.name, func(t *testing.T) {
			o := newOrigin(t, func(m *message, nc net.Conn, br *bufio.Reader) verdict {
				if m.target == "/big" {
					_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n"+strings.Repeat("x", 1<<16))
					_, _ = io.Copy(io.Discard, nc)
					return done
				}
				return slow(m, nc, br)
			})
			l, proxy := newSoak(t, o.addr, good)
			like, factor := &honest, time.Duration(1)
			if f.make == nil {
				like, factor = &honestKnock, knockFactor
			}
			alone, with, grown := soak(l, proxy, client, like, &f)
			plain, flood := with[0], with[1]
			limit := memoryFactor*flood.sent + memoryConstant
			tell := func(ok bool, how string) string {
				if !ok {
					t.Fail()
					return "FAIL"
				}
				return how
			}
			beside := "pass"
			if flood.p99 > 2*alone+soakGrain {
				beside = "pass: as beside plain requests"
			}
			ms := func(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }
			row(f.name, flood.sent>>10, flood.cpu.Milliseconds(), plain.cpu.Milliseconds(), tell(flood.cpu <= factor*plain.cpu, "pass"),
				grown>>10, limit>>10, tell(grown <= limit, "pass"),
				ms(alone), ms(plain.p99), ms(flood.p99), tell(flood.p99 <= max(2*alone, plain.p99)+soakGrain, beside))
			if !t.Failed() {
				passed++
			}
		})
	}
	_ = out.Flush()
	fmt.Printf("%d of %d floods pass: processor time for a byte at most that of plain requests (HTTP/1: twice), memory at most %d × the bytes and %d MB, the 99th percentile of the client that behaves at most doubled or as beside plain requests\n",
		passed, len(all), memoryFactor, memoryConstant>>20)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
