package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The processors: the proxy has one alone, the load and the backend share the other.
const (
	loadCPU  = 0
	proxyCPU = 1
)

// process is a program that runs for the time of a case.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string // path of what it writes
	config string // what it was told, for the report
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// arena is what a case has to itself: a folder and the processes that it started, which end with it.
type arena struct {
	dir      string
	tools    *tools
	procs    []*process
	warnings []string
}

// start runs a program pinned to one processor, with its output in a file.
func (a *arena) start(name string, processor int, config string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(a.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("taskset", append([]string{"-c", strconv.Itoa(processor)}, args...)...) // taskset execs: the process id is the program's
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s can't be started: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log.Name(), config: config}
	a.procs = append(a.procs, p)
	return p, nil
}

// close ends the processes, last first.
func (a *arena) close() {
	for i := len(a.procs) - 1; i >= 0; i-- {
		a.stop(a.procs[i])
	}
	a.procs = nil
}

// stop ends one process and compares the clock of its CPU time with what the kernel says of it in the end.
func (a *arena) stop(p *process) {
	spent, err := cpuTime(p.pid())
	threads, _ := threadTime(p.pid())
	_ = p.cmd.Process.Signal(os.Interrupt)
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
	if err != nil || p.cmd.ProcessState == nil {
		return
	}
	// wait4(2) counts in the same way, and what was spent on ending too.
	total := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	if off := (total - spent).Abs(); off > 100*time.Millisecond+total/20 {
		a.warnings = append(a.warnings, fmt.Sprintf("%s: the process clock says %s of CPU time, wait4 %s, its threads %s", p.name, spent, total, threads))
	}
}

// tail is the end of what a process wrote, for error messages.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-600):])
}

// ready waits until something listens on a port.
func (p *process) ready(port int) error {
	for range 200 {
		c, err := net.DialTimeout("tcp", address(port), time.Second)
		if err == nil {
			return c.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s does not listen on port %d after 10 s: %s", p.name, port, p.tail())
}

// file writes a file into the arena's folder and returns its path.
func (a *arena) file(name string, content []byte) (string, error) {
	path := filepath.Join(a.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, content, 0o644) // nginx may read it as another user
}

func address(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

var (
	portsMu  sync.Mutex
	nextPort = 21000
)

// freePort returns a port that nobody listens on. Ports lie below the range of outgoing connections and are not given
// twice, so that no client of an earlier case has taken one.
func freePort() (int, error) {
	portsMu.Lock()
	defer portsMu.Unlock()
	for ; nextPort < 30000; nextPort++ {
		l, err := net.Listen("tcp", address(nextPort))
		if err != nil {
			continue
		}
		_ = l.Close()
		nextPort++
		return nextPort - 1, nil
	}
	return 0, fmt.Errorf("no free port between 21000 and 30000")
}

// works asks a proxy for the page until it gives it: the first request of a subject, before anything is measured.
func works(port int) error {
	var last error
	for range 100 {
		req, err := http.NewRequest(http.MethodGet, "http://"+address(port)+path, nil)
		if err != nil {
			return err
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			n, _ := io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK && n > 0 {
				return nil
			}
			err = fmt.Errorf("status %d with %d bytes", resp.StatusCode, n)
		}
		last = err
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("port %d does not answer as it should: %w", port, last)
}

// version is the first line that a program prints about itself.
func version(args ...string) string {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil && len(out) == 0 {
		return ""
	}
	line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
	return strings.TrimSpace(string(line))
}
