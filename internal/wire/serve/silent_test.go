package serve_test

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"testing"
	"weak"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/trust"
	"github.com/malha-mesh/malha/internal/wire"
	"github.com/malha-mesh/malha/internal/wire/serve"
)

// TestSilentClientIsForgotten: nothing of a connection stays that ended before its first message.
func TestSilentClientIsForgotten(t *testing.T) {
	c := newControl(t, 0, serve.Options{})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &remembers{Listener: tcp, accepted: make(chan weak.Pointer[net.TCPConn], 1)}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { _ = serve.New(c.opts).Run(ctx, ln) })
	defer run.Wait()
	defer cancel()
	cfg := trust.ClientConfig(trust.Static{Credentials: &trust.Credentials{Roots: c.ca.Pool()}}, []ident.Identity{wire.ControlPlane("cluster.local")}, "", []string{wire.ALPN})
	conn, err := tls.Dial("tcp", tcp.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	accepted := <-ln.accepted
	eventually(t, "forgotten", func() bool {
		runtime.GC()
		return accepted.Value() == nil
	})
}

// remembers tells of what it accepts, and keeps nothing of it.
type remembers struct {
	net.Listener
	accepted chan weak.Pointer[net.TCPConn]
}

func (l *remembers) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		l.accepted <- weak.Make(nc.(*net.TCPConn))
	}
	return nc, err
}
