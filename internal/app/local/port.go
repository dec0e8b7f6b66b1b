package local

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
)

// ports hands out free TCP ports of the loopback interface. A key gets the same port for as long as the mesh lives, so
// that a configuration change moves nobody. The ports lie below the range from which the kernel takes the source ports
// of outgoing connections: one in that range could be in use, for a while, at the moment we need it.
type ports struct {
	low, high int // candidates, high excluded; none: the kernel chooses
	next      int
	byKey     map[string]int
	taken     map[int]bool
}

func newPorts() *ports {
	p := &ports{low: 20000, high: ephemeralLow(), byKey: make(map[string]int), taken: make(map[int]bool)}
	if p.high-p.low < 2000 {
		p.low = 10000
	}
	if p.high-p.low >= 2000 {
		// Two meshes that start at the same time look in different places.
		p.next = p.low + rand.IntN(p.high-p.low)
	}
	return p
}

// ephemeralLow returns the lowest source port of outgoing connections (ip(7), ip_local_port_range).
func ephemeralLow() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 32768
	}
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return 32768
	}
	n, err := strconv.Atoi(f[0])
	if err != nil {
		return 32768
	}
	return n
}

// port returns the port of key.
func (p *ports) port(key string) (int, error) {
	if n, ok := p.byKey[key]; ok {
		return n, nil
	}
	n, err := p.find()
	if err != nil {
		return 0, err
	}
	p.byKey[key], p.taken[n] = n, true
	return n, nil
}

// take notes that a key has a port which the caller chose.
func (p *ports) take(key string, n int) {
	if before, ok := p.byKey[key]; ok {
		delete(p.taken, before)
	}
	p.byKey[key], p.taken[n] = n, true
}

// owner returns the key that has a port; "" when none does.
func (p *ports) owner(n int) string {
	if p.taken[n] {
		for k, have := range p.byKey {
			if have == n {
				return k
			}
		}
	}
	return ""
}

func (p *ports) find() (int, error) {
	if p.next > 0 {
		for range p.high - p.low {
			n := p.next
			if p.next++; p.next == p.high {
				p.next = p.low
			}
			if !p.taken[n] && free(n) == nil {
				return n, nil
			}
		}
	}
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return 0, fmt.Errorf("no free port on 127.0.0.1: %w", err)
		}
		n := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if !p.taken[n] {
			return n, nil
		}
	}
	return 0, errors.New("no free port on 127.0.0.1")
}

// release forgets the ports of a workload: the keys "KIND/NAMESPACE/NAME" and "KIND/NAMESPACE/NAME/…".
func (p *ports) release(name ident.Name) {
	for k, n := range p.byKey {
		_, of, _ := strings.Cut(k, "/")
		if of == name.String() || strings.HasPrefix(of, name.String()+"/") {
			delete(p.byKey, k)
			delete(p.taken, n)
		}
	}
}

// free reports whether somebody could listen on a loopback port, as the error of trying.
func free(port int) error {
	l, err := net.Listen("tcp4", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	return l.Close()
}

// holder names the process that listens on a port, when /proc tells: "nginx (pid 123)", else "".
func holder(port int) string {
	inodes := make(map[string]bool)
	for _, f := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		suffix := fmt.Sprintf(":%04X", port)
		for line := range bytes.Lines(b) {
			// proc(5): sl local_address rem_address st … uid timeout inode; state 0A is LISTEN.
			f := strings.Fields(string(line))
			if len(f) > 9 && strings.HasSuffix(f[1], suffix) && f[3] == "0A" {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !inodes[target] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "pid " + pid
		}
		return strings.TrimSpace(string(comm)) + " (pid " + pid + ")"
	}
	return ""
}
