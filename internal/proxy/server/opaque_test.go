package server

import (
	"net"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// sockets returns both ends of a TCP connection.
func sockets(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if far, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	return near, far
}

// An opaque connection in which nothing moves ends, also when both sides wait for each other to read.
func TestBothSidesOnlyWrite(t *testing.T) {
	down, client := sockets(t)
	up, server := sockets(t)
	for _, far := range []net.Conn{client, server} {
		go func() {
			for b := make([]byte, 1<<20); ; {
				if _, err := far.Write(b); err != nil {
					return
				}
			}
		}()
	}
	l := &Listener{o: Options{Recorder: telemetry.New(telemetry.Options{})}.withDefaults()}
	r := &Rules{Listener: &plan.Listener{TCPIdle: plan.Duration(200 * time.Millisecond)}}
	rec := l.tcpRecord(&conn.Peer{}, r)
	over := make(chan struct{})
	go func() {
		defer close(over)
		l.carry(&prefixConn{Conn: down}, up, rec, r)
	}()
	select {
	case <-over:
		if rec.Flags != telemetry.StreamIdle {
			t.Errorf("it ended with flags %v", rec.Flags)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}
