// Package netns proves by packets that traffic is captured: a workload, a real malha-proxy and a neighbour in network namespaces
// that the tests make, with addresses of 198.18.0.0/15 and fd00:198:18::/48. It takes root, ip(8), unshare(1) and setpriv(1), so
// it runs with MALHA_NETNS=1 only: `make netns`.
package netns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// proxyUser is the user and group of the proxy.
const proxyUser = "1337"

var binary string // malha-proxy

func TestMain(m *testing.M) {
	if os.Getenv("MALHA_NETNS") == "" {
		fmt.Println("skipped: MALHA_NETNS=1 runs it, as root (make netns)")
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "malha-netns")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	_ = os.Chmod(dir, 0o755) // the proxy is another user
	binary = filepath.Join(dir, "malha-proxy")
	build := exec.Command("go", "build", "-o", binary, "github.com/malha-mesh/malha/cmd/malha-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if os.Getenv("MALHA_NETNS") == "race" {
		build = exec.Command("go", "build", "-race", "-o", binary, "github.com/malha-mesh/malha/cmd/malha-proxy")
	}
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// namespace is a network namespace, one of ip-netns(8).
type namespace struct {
	name string
	fd   int
}

var made int

func newNamespace(t *testing.T, what string) *namespace {
	t.Helper()
	made++
	n := &namespace{name: fmt.Sprintf("malha-%d-%d-%s", os.Getpid(), made, what)}
	command(t, "ip", "netns", "add", n.name)
	t.Cleanup(func() {
		_ = unix.Close(n.fd)
		command(t, "ip", "netns", "del", n.name)
	})
	fd, err := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.fd = fd
	n.ip(t, "link", "set", "lo", "up")
	return n
}

func (n *namespace) ip(t *testing.T, args ...string) {
	t.Helper()
	command(t, "ip", append([]string{"-n", n.name}, args...)...)
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// do runs f on a thread in the namespace: sockets that f opens, and processes that it starts, are of the namespace for good. The
// thread ends with it.
func (n *namespace) do(f func()) {
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		f()
	})
	done.Wait()
}

func (n *namespace) dial(network, addr string) (c net.Conn, err error) {
	n.do(func() {
		d := net.Dialer{Timeout: 30 * time.Second}
		c, err = d.Dial(network, addr)
	})
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
	}
	return c, err
}

func (n *namespace) listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	var ln net.Listener
	var err error
	n.do(func() {
		var lc net.ListenConfig
		ln, err = lc.Listen(context.Background(), "tcp", addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (n *namespace) packets(t *testing.T, addr string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	var err error
	n.do(func() { c, err = net.ListenPacket("udp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a program to its end as root and returns what it says.
func (n *namespace) run(args ...string) (string, error) {
	var out []byte
	var err error
	n.do(func() { out, err = exec.Command(args[0], args[1:]...).CombinedOutput() })
	return string(out), err
}

// process is a program that runs.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start starts a program as the proxy's user, for whom resolv is /etc/resolv.conf. It is killed at the end of the test.
func (n *namespace) start(t *testing.T, resolv string, args ...string) *process {
	t.Helper()
	p := &process{done: make(chan struct{})}
	const script = `mount --bind "$0" /etc/resolv.conf && exec setpriv --reuid ` + proxyUser + ` --regid ` + proxyUser + ` --clear-groups --bounding-set=-all -- "$@"`
	p.cmd = exec.Command("unshare", append([]string{"-m", "sh", "-c", script, resolv}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	var err error
	n.do(func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// eventually waits for f.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}
