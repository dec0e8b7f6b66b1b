package server

import (
	"log/slog"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/conn"
	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// broken is an exchange of which nothing can be asked.
type broken struct {
	stream.Downstream
	reset []stream.Cause
}

func (*broken) Request() *message.Request { panic("a fault of ours") }
func (b *broken) Reset(c stream.Cause)    { b.reset = append(b.reset, c) }

// A panic ends its own exchange: an HTTP/2 connection serves each of them on a goroutine of its own, where nobody else catches it.
func TestPanicIsOfOneExchange(t *testing.T) {
	rec := telemetry.New(telemetry.Options{})
	l := &Listener{o: Options{Recorder: rec, Log: slog.New(slog.DiscardHandler)}} // no rules: whoever asks for them panics
	for name, h := range map[string]conn.Handler{
		"forward": &forwarder{l}, "tunnel": &tunnelHandler{l: l}, "name": &nameHandler{l: l}, "plain": handler{l},
	} {
		b, before := new(broken), rec.Proxy.Panics.Value()
		h.Serve(b, nil)
		if n := rec.Proxy.Panics.Value() - before; n != 1 || len(b.reset) != 1 || b.reset[0] != stream.Internal {
			t.Errorf("%s: %d panics counted, reset %v", name, n, b.reset)
		}
	}
}
