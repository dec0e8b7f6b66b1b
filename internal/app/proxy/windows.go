package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/malha-mesh/malha/internal/probe"
	"github.com/malha-mesh/malha/internal/proxy/admin"
	"github.com/malha-mesh/malha/internal/proxy/inquiry"
)

// window is a port through which people, scrapers and the kubelet look into the proxy.
type window struct {
	name   string // and the flag
	addr   string
	server *admin.Server
	socket *net.TCPListener
	held   bool // it was handed over: not served before hold is closed
}

// key is that of the socket in a handover; listeners of plans have keys of internal/proxy/live.
func (w *window) key() string { return w.name + " " + w.addr }

// openWindows opens the ports, or takes them over. What may command or show the plan is on the admin port alone.
func (a *App) openWindows(ctx context.Context) error {
	set, err := probe.Decode(a.o.Getenv(probe.Env))
	if err != nil {
		return err
	}
	health := admin.Options{Ready: a.ready, Version: a.o.Version, Log: a.log}
	if len(set) > 0 {
		health.Inquiry = inquiry.New(set, a.o.Getenv("POD_IP"))
	}
	var trusted func(remote, local netip.AddrPort) error
	if a.guard != nil {
		trusted = a.guard.Check
	}
	for _, w := range []*window{
		{name: "admin", addr: a.c.Admin, server: admin.New(admin.Options{
			Trusted: trusted,
			Ready:   a.ready, Metrics: a.rec, Plan: a.proxy.Plan, Listeners: func() any { return a.proxy.Status() }, Clusters: func() any { return a.proxy.Upstreams().Snapshot() },
			Certs: &a.creds, Level: &a.level, Drain: a.beginDrain, Quit: func() { a.quit() }, Version: a.o.Version, Log: a.log,
		})},
		{name: "health", addr: a.c.Health, server: admin.New(health)},
		{name: "metrics", addr: a.c.Metrics, server: admin.New(admin.Options{Ready: a.ready, Metrics: a.rec, Version: a.o.Version, Log: a.log})},
	} {
		if w.addr == "" {
			continue
		}
		if err := a.openWindow(ctx, w); err != nil {
			for _, opened := range a.windows {
				_ = opened.socket.Close()
			}
			return err
		}
		a.windows = append(a.windows, w)
	}
	return nil
}

func (a *App) openWindow(ctx context.Context, w *window) error {
	if a.predecessor != nil {
		if w.socket = a.predecessor.Listener(w.key()); w.socket != nil {
			a.log.Info("port is handed over", "port", w.name, "addr", w.socket.Addr().String())
			w.held = true
			return nil
		}
	}
	ln, err := listen(ctx, w.addr)
	if err != nil {
		return fmt.Errorf("the %s port can't be opened: %w; choose another with --%s", w.name, err, w.name)
	}
	w.socket = ln
	a.log.Info("port is open", "port", w.name, "addr", ln.Addr().String())
	return nil
}

// serveWindow serves a port; one that is taken over, from the moment on when its answers are about this proxy.
func (a *App) serveWindow(ctx context.Context, w *window) error {
	if w.held {
		select {
		case <-a.hold:
		case <-ctx.Done():
			return w.socket.Close()
		}
	}
	return w.server.Run(ctx, w.socket)
}
