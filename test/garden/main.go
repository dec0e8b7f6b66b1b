// Command garden proves that every origin sees exactly the requests that the proxy says it forwarded. It runs malha-proxy in
// front of real servers of many authors, sends them valid but odd and malformed messages over HTTP/1 and HTTP/2, and compares
// four accounts of each message: what the generator meant, what the proxy's access log counted, what went over the wire
// (read by net/http), and what the origin's application saw. `make garden` runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// garden is one run.
type garden struct {
	dir, apps string
	planted   []*origin
	tees      map[string]*tee
	listeners map[string]int // ports of the proxy by origin
	proxy     *exec.Cmd
	accessLog string
	stopping  sync.Once
	ports     atomic.Uint32 // the last that freePort gave, less 20000
}

// freePort returns a port that nobody listens on, and never the same one twice. It lies below the range that the kernel
// takes for outgoing connections (ip_local_port_range), or one of those could have it before its server is up.
func (g *garden) freePort() int {
	for {
		port := int(20000 + g.ports.Add(1)%10000)
		syscall.ForkLock.RLock() // an origin that is started meanwhile would keep the port until it is another program
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = ln.Close()
		}
		syscall.ForkLock.RUnlock()
		if err == nil {
			return port
		}
	}
}

func (g *garden) fatal(err error) {
	g.stop()
	fmt.Fprintln(os.Stderr, "garden:", err)
	os.Exit(1)
}

// stop ends every process that this run started.
func (g *garden) stop() {
	g.stopping.Do(func() {
		if g.proxy != nil && g.proxy.ProcessState == nil {
			_ = g.proxy.Process.Kill()
			_ = g.proxy.Wait()
		}
		for _, o := range g.planted {
			o.stop()
		}
	})
}

func main() {
	if os.Getenv("GARDEN_GO") != "" {
		serveGo()
		return
	}
	messages := flag.Int("messages", 20000, "how many messages, over all origins")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the generator")
	only := flag.String("only", "", "names of origins, separated by commas")
	atLeast := flag.Int("at-least", 8, "fail with fewer origins than that")
	program := flag.String("proxy", "bin/malha-proxy", "the proxy under test")
	keep := flag.Bool("keep", false, "keep the folder with all configurations and records")
	show := flag.Int("show", 10, "how many mismatches are printed for an origin")
	flag.Parse()
	if err := run(*messages, *seed, *only, *atLeast, *program, *keep, *show); err != nil {
		fmt.Fprintln(os.Stderr, "garden:", err)
		os.Exit(1)
	}
}

func run(messages int, seed uint64, only string, atLeast int, program string, keep bool, show int) error {
	began := time.Now()
	dir, err := os.MkdirTemp("", "garden-")
	if err != nil {
		return err
	}
	if !keep {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	g := &garden{dir: dir, apps: filepath.Join(dir, "apps"), tees: map[string]*tee{}, listeners: map[string]int{}, accessLog: filepath.Join(dir, "access.log")}
	defer g.stop()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		g.stop()
		os.Exit(1)
	}()
	if err := os.MkdirAll(g.apps, 0o755); err != nil {
		return err
	}
	// Servers that change to a user of their own must find their files.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := unpack(g.apps); err != nil {
		return err
	}
	if err := g.plant(only, atLeast); err != nil {
		return err
	}
	if err := g.startProxy(program); err != nil {
		return err
	}
	fmt.Printf("garden: %d origins, %d messages, seed %d, ready after %s\n", len(g.planted), messages, seed, time.Since(began).Round(time.Millisecond))

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var sent atomic.Int64
	all := make(map[string][]*blob, len(g.planted))
	share := (messages + len(g.planted) - 1) / len(g.planted)
	for i, o := range g.planted {
		blobs := generate(seed+uint64(i)*1e6, share, o.name)
		all[o.name] = blobs
		addr := fmt.Sprintf("127.0.0.1:%d", g.listeners[o.name])
		var next atomic.Int64
		for range 3 {
			wg.Go(func() {
				for n := next.Add(1) - 1; int(n) < len(blobs) && ctx.Err() == nil; n = next.Add(1) - 1 {
					blobs[n].send(addr)
					sent.Add(1)
				}
			})
		}
	}
	wg.Wait()
	fmt.Printf("garden: %d messages sent after %s\n", sent.Load(), time.Since(began).Round(time.Millisecond))

	// The end of the proxy ends its connections and its log; then the tees, then the origins, whose records are written before
	// they answer.
	_ = g.proxy.Process.Signal(syscall.SIGTERM)
	if err := g.proxy.Wait(); err != nil {
		return fmt.Errorf("the proxy did not end in order: %w", err)
	}
	for _, t := range g.tees {
		t.close()
	}
	for _, o := range g.planted {
		if err := o.alive(); err != nil {
			return fmt.Errorf("%s, before all was sent: %w", o.name, err)
		}
	}
	counted, err := readAccessLog(g.accessLog)
	if err != nil {
		return err
	}
	bad := 0
	fmt.Printf("%-20s %9s %9s %9s %9s %9s %9s %9s\n", "origin", "messages", "refused", "forwarded", "seen", "declined", "cut", "MISMATCH")
	for _, o := range g.planted {
		v := compare(o, all[o.name], g.tees[o.name], counted[o.name])
		fmt.Printf("%-20s %9d %9d %9d %9d %9d %9d %9d\n", o.name, len(all[o.name]), v.refused, v.forwarded, v.seen, v.declined, v.cut, len(v.mismatches))
		bad += len(v.mismatches)
		for i, m := range v.mismatches {
			if i == show {
				fmt.Printf("... and %d more\n", len(v.mismatches)-show)
				break
			}
			fmt.Printf("\n-- %s: %s\n", o.name, m)
		}
	}
	fmt.Printf("garden: %d mismatches in %d messages to %d origins, in %s\n", bad, sent.Load(), len(g.planted), time.Since(began).Round(time.Second))
	if bad > 0 {
		return fmt.Errorf("%d mismatches; run again with --seed %d", bad, seed)
	}
	return nil
}

// plant starts the origins.
func (g *garden) plant(only string, atLeast int) error {
	var wg sync.WaitGroup
	errs := make([]error, len(origins))
	for i, o := range origins {
		if only != "" && !slices.Contains(strings.Split(only, ","), o.name) {
			continue
		}
		g.planted = append(g.planted, o)
		wg.Go(func() { errs[i] = g.start(o) })
	}
	wg.Wait()
	for i, o := range origins {
		if o.process != nil && errs[i] == nil {
			errs[i] = o.alive() // all the others took their time
		}
		if errs[i] != nil {
			fmt.Printf("garden: without %s: %v\n", o.name, errs[i])
			o.stop()
			g.planted = slices.DeleteFunc(g.planted, func(p *origin) bool { return p == o })
		}
	}
	if only == "" && len(g.planted) < atLeast {
		return fmt.Errorf("only %d origins started, %d are wanted", len(g.planted), atLeast)
	}
	for _, o := range g.planted {
		t, err := newTee(fmt.Sprintf("127.0.0.1:%d", o.port))
		if err != nil {
			return err
		}
		g.tees[o.name], o.tee = t, t.port()
	}
	return nil
}

// startProxy runs malha-proxy with one listener and one cluster for each origin.
func (g *garden) startProxy(program string) error {
	p := &plan.Plan{Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "garden"}, Role: plan.Gateway}}
	for _, o := range g.planted {
		g.listeners[o.name] = g.freePort()
		p.Listeners = append(p.Listeners, plan.Listener{Name: o.name, Bind: fmt.Sprintf("127.0.0.1:%d", g.listeners[o.name]),
			Direction: plan.Edge, Protocol: ident.HTTP, Routes: o.name})
		p.Routes = append(p.Routes, plan.RouteTable{Name: o.name, Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"},
			Routes: []plan.Route{{Name: "all", Forward: []plan.Destination{{Cluster: o.name, Weight: 1}}}}}}})
		p.Clusters = append(p.Clusters, plan.Cluster{Name: o.name, Host: o.name, Port: 80, Protocol: ident.HTTP})
		p.Endpoints = append(p.Endpoints, plan.Endpoints{Cluster: o.name, Endpoints: []plan.Endpoint{{Address: fmt.Sprintf("127.0.0.1:%d", o.tee)}}})
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	admin := fmt.Sprintf("127.0.0.1:%d", g.freePort())
	g.proxy = exec.Command(program, "--plan", g.config("plan.json", string(b)), "--admin", admin, "--access-log", g.accessLog, "--drain-timeout", "10s")
	out, err := os.Create(filepath.Join(g.dir, "proxy.output"))
	if err != nil {
		return err
	}
	g.proxy.Stdout, g.proxy.Stderr = out, out
	g.proxy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.proxy.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", admin); err == nil {
			_ = c.Close()
			time.Sleep(100 * time.Millisecond)
			return nil
		}
	}
	return fmt.Errorf("the proxy does not start")
}
