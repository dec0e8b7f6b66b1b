package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// pipes is a network in memory, for tests in fake time (testing/synctest), in which a machine that is busy takes no time.
type pipes struct {
	mu    sync.Mutex
	doors map[string]*door
}

// door is a listener of pipes.
type door struct {
	addr  string
	conns chan net.Conn
	shut  chan struct{}
	close func()
}

func (p *pipes) listen() net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doors == nil {
		p.doors = map[string]*door{}
	}
	d := &door{addr: fmt.Sprintf("192.0.2.1:%d", len(p.doors)+1), conns: make(chan net.Conn), shut: make(chan struct{})}
	d.close = sync.OnceFunc(func() { close(d.shut) })
	p.doors[d.addr] = d
	return d
}

func (p *pipes) dial(ctx context.Context, addr string) (net.Conn, error) {
	p.mu.Lock()
	d := p.doors[addr]
	p.mu.Unlock()
	if d == nil {
		return nil, errors.New("nobody listens at " + addr)
	}
	ours, theirs := net.Pipe()
	select {
	case d.conns <- theirs:
		return ours, nil
	case <-d.shut:
		return nil, errors.New("nobody listens any more at " + addr)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.shut:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error   { d.close(); return nil }
func (d *door) Addr() net.Addr { return d }

// Network and String make a door the address of itself.
func (d *door) Network() string { return "pipe" }
func (d *door) String() string  { return d.addr }
