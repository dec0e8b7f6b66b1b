package local

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/internal/ident"
)

// ports hands out free TCP ports of the loopback interface. A key gets the same port for as long as the mesh lives, so
// that a configuration change moves nobody. The ports lie below the range from which the kernel takes the source ports
// of outgoing connections: one in that range could be in use, for a while, at the moment we need it.
//
// Several meshes may run on a machine, and a port is free to everybody while the program that listens on it starts again.
// So a mesh takes ports from blocks that it has claimed, and claims those of its gateways.
type ports struct {
	low, high int // candidates, high excluded; none: the kernel chooses

	mu     sync.Mutex
	blocks []block
	next   int // where to look, counted through the blocks
	byKey  map[string]int
	taken  map[int]bool
	theirs map[int]bool      // of programs that are not ours, which may come later
	single map[int]io.Closer // claims of ports outside the blocks
	claim  func(what string, n int) (io.Closer, error)
}

// block is portBlock ports that are ours.
type block struct {
	first int
	claim io.Closer
}

const portBlock = 128

func newPorts() *ports {
	p := &ports{low: 20000, high: ephemeralLow(), byKey: make(map[string]int), taken: make(map[int]bool), theirs: make(map[int]bool), single: make(map[int]io.Closer), claim: claim}
	if p.high-p.low < 2000 {
		p.low = 10000
	}
	if p.high-p.low < 2000 {
		p.high = p.low
	}
	return p
}

// close gives the claims back.
func (p *ports) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.blocks {
		_ = b.claim.Close()
	}
	for _, c := range p.single {
		_ = c.Close()
	}
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

// noRange is how many ports a mesh may have where there are none below those of outgoing connections.
const noRange = 5000

// room returns how many ports can be had beside those that are taken, if no other mesh has them, and how many of them there are.
func (p *ports) room() (free, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if all = (p.high - p.low) / portBlock * portBlock; all == 0 {
		all = noRange
	}
	return all - len(p.taken), all
}

// has reports whether a key has a port.
func (p *ports) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.byKey[key]
	return ok
}

// forget takes the ports of keys back.
func (p *ports) forget(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range keys {
		p.drop(k)
	}
}

// port returns the port of key.
func (p *ports) port(key string) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
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

// leave has a port given to nobody from now on: a program that somebody else starts listens there, or is going to.
func (p *ports) leave(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.theirs[n] = true
}

// errClaimed says that a port belongs to another mesh, also while nobody listens on it.
var errClaimed = errors.New("another mesh of this machine has it")

// take gives a key a port which the caller chose. The error is errClaimed, or why nobody can listen there.
func (p *ports) take(key string, n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byKey[key] == n {
		return nil
	}
	if err := free(n); err != nil {
		return err
	}
	c, err := p.claim("port", n)
	if err != nil {
		return err
	}
	p.drop(key)
	p.byKey[key], p.taken[n], p.single[n] = n, true, c
	return nil
}

// drop forgets the port of a key. Its caller holds mu, as those of find and more do.
func (p *ports) drop(key string) {
	n, ok := p.byKey[key]
	if !ok {
		return
	}
	delete(p.byKey, key)
	delete(p.taken, n)
	if c := p.single[n]; c != nil {
		_ = c.Close()
		delete(p.single, n)
	}
}

// owner returns the key that has a port; "" when none does.
func (p *ports) owner(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
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
	for {
		for range len(p.blocks) * portBlock {
			n := p.blocks[p.next/portBlock].first + p.next%portBlock
			p.next = (p.next + 1) % (len(p.blocks) * portBlock)
			if !p.taken[n] && !p.theirs[n] && free(n) == nil {
				return n, nil
			}
		}
		if !p.more() {
			break
		}
	}
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return 0, fmt.Errorf("no free port is left on 127.0.0.1: %w; stop what has them (`ss -ltn`)", err)
		}
		n := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if !p.taken[n] && !p.theirs[n] {
			return n, nil
		}
	}
	return 0, errors.New("no free port is left on 127.0.0.1; stop another mesh, or what else has them (`ss -ltn`)")
}

// more claims another block, and looks there next; false when none is left. Two meshes that start at the same time begin in
// different places.
func (p *ports) more() bool {
	count := (p.high - p.low) / portBlock
	if count <= len(p.blocks) {
		return false
	}
	for i, start := 0, rand.IntN(count); i < count; i++ {
		first := p.low + (start+i)%count*portBlock
		if slices.ContainsFunc(p.blocks, func(b block) bool { return b.first == first }) {
			continue
		}
		if c, err := p.claim("ports", first); err == nil {
			p.blocks = append(p.blocks, block{first, c})
			p.next = (len(p.blocks) - 1) * portBlock
			return true
		}
	}
	return false
}

// release forgets the ports of a workload: the keys "KIND/NAMESPACE/NAME" and "KIND/NAMESPACE/NAME/…".
func (p *ports) release(name ident.Name) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range slices.Collect(maps.Keys(p.byKey)) {
		_, of, _ := strings.Cut(k, "/")
		if of == name.String() || strings.HasPrefix(of, name.String()+"/") {
			p.drop(k)
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
