package live

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/dns"
	"github.com/malha-mesh/malha/internal/proxy/server"
	"github.com/malha-mesh/malha/internal/proxy/upstream"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// delivery is the priority of connections to the workload itself. The rules of capture (internal/capture.Delivery, which the
// proxy does not link) tell them by it.
const delivery = 5

// captureKey is the key of a listener that captured connections are given to.
func captureKey(l *plan.Listener) string {
	if l.Direction == plan.Inbound {
		return "captured inbound " + strconv.Itoa(l.Port)
	}
	return "captured outbound"
}

// The keys of the doors of captured traffic begin so, before their address.
const (
	inboundKey  = "capture inbound "
	outboundKey = "capture outbound "
	namesKey    = "names "
)

func isInbound(key string) bool { return strings.HasPrefix(key, inboundKey) }

// checkCapture finds what of a plan's capture can't be used.
func checkCapture(p *packed.Plan) error {
	c := p.Capture
	if c == nil {
		return nil
	}
	for _, a := range []struct{ what, addr string }{{"inbound", c.Inbound}, {"outbound", c.Outbound}, {"dns", c.DNS}} {
		if a.addr == "" {
			continue
		}
		if ap, err := netip.ParseAddrPort(a.addr); err != nil || ap.Addr().Zone() != "" {
			return fmt.Errorf("%s: %q is not an IP with a port", a.what, a.addr)
		}
	}
	if _, err := dns.NewNames(c.Names); err != nil {
		return err
	}
	forwards := 0
	for i := range p.Listeners {
		if p.Listeners[i].Forward {
			forwards++
		}
	}
	switch {
	case c.Outbound != "" && forwards != 1:
		return fmt.Errorf("outbound connections go to the forward proxy, and there are %d", forwards)
	case c.Otherwise != "" && c.Otherwise != plan.Passthrough && c.Otherwise != plan.Block:
		return fmt.Errorf("%q can't be done with connections for other ports", c.Otherwise)
	}
	return nil
}

// deliveries are the clusters that a plan's inbound listeners lead to: the workload itself.
func deliveries(p *packed.Plan) *upstream.Delivery {
	if p.Capture == nil {
		return nil
	}
	d := &upstream.Delivery{Clusters: make(map[string]bool), Priority: delivery}
	add := func(ds []plan.Destination) {
		for i := range ds {
			d.Clusters[ds[i].Cluster] = true
		}
	}
	for i := range p.Listeners {
		l := &p.Listeners[i]
		if l.Direction != plan.Inbound {
			continue
		}
		add(l.TCP)
		for j := range l.TCPRoutes {
			add(l.TCPRoutes[j].Forward)
		}
		for piece := range packed.Hosts(packed.Get(p.Routes, l.Routes)) {
			h := piece.Open()
			for r := range h.Routes {
				add(h.Routes[r].Forward)
			}
		}
	}
	return d
}

// taken is the doors of captured traffic that a plan needs, before it is in force.
type taken struct {
	doors  map[string]*server.Listener // all
	opened []*server.Listener          // those that are new
	names  *names                      // nil: none
	fresh  bool                        // names are new
}

// twins are the addresses by which a door is reached. The kernel redirects what a workload sends to the loopback address of the
// same version of IP, so a door at one needs the other, where the machine has it.
func twins(bind string) []string {
	if rest, ok := strings.CutPrefix(bind, "127.0.0.1:"); ok {
		return []string{bind, "[::1]:" + rest}
	}
	return []string{bind}
}

// absent tells that the machine does not have the address of a twin: IPv6 may be switched off.
func absent(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// openCapture opens the doors that are not open yet. Nothing is served by them before serveCapture.
func (p *Proxy) openCapture(c *plan.Capture) (*taken, error) {
	t := &taken{doors: make(map[string]*server.Listener)}
	if c == nil {
		return t, nil
	}
	for _, d := range []struct {
		key, bind string
		admits    func(netip.AddrPort) error
	}{{inboundKey, c.Inbound, p.admitsInbound}, {outboundKey, c.Outbound, p.admitsOutbound}} {
		if d.bind == "" {
			continue
		}
		for i, bind := range twins(d.bind) {
			k := d.key + bind
			if t.doors[k] = p.captured[k]; t.doors[k] != nil {
				continue
			}
			ln, err := p.socket(k, bind)
			if i > 0 && absent(err) {
				delete(t.doors, k)
				continue
			}
			if err != nil {
				p.closeCapture(t)
				return nil, notOpened("capture", "", bind, err)
			}
			t.doors[k] = server.NewDoor(p.o.Server, ln, strings.TrimSpace(d.key), d.admits)
			t.opened = append(t.opened, t.doors[k])
		}
	}
	if c.DNS == "" {
		return t, nil
	}
	if p.names != nil && p.names.bind == c.DNS {
		t.names = p.names
		return t, nil
	}
	var err error
	if t.names, err = p.openNames(c.DNS); err != nil {
		p.closeCapture(t)
		return nil, notOpened("capture", "", c.DNS, err)
	}
	t.fresh = true
	return t, nil
}

func (p *Proxy) socket(key, bind string) (*net.TCPListener, error) {
	if p.o.Inherit != nil {
		if ln := p.o.Inherit(key); ln != nil {
			return ln, nil
		}
	}
	if ln := p.comesBack(key); ln != nil {
		return ln, nil
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", bind)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// closeCapture closes what openCapture opened.
func (p *Proxy) closeCapture(t *taken) {
	for _, ln := range t.opened {
		_ = ln.Close()
	}
	if t.fresh {
		t.names.discard()
	}
}

// serveCapture puts doors in force, and retires those that the plan has no more. kept are the plan's listeners.
func (p *Proxy) serveCapture(t *taken, next *packed.Plan, kept map[string]*server.Listener) {
	in, out := make(map[int]*server.Listener), make(map[int]*server.Listener)
	for i := range next.Listeners {
		l := &next.Listeners[i]
		switch {
		case l.Direction == plan.Inbound && l.Bind == "":
			in[l.Port] = kept[key(l)]
		case l.Forward:
			out[0] = kept[key(l)]
		}
	}
	for k, ln := range t.doors {
		if isInbound(k) {
			ln.Feed(in)
		} else {
			ln.Feed(out)
		}
	}
	for _, ln := range t.opened {
		p.wg.Go(func() {
			p.hold()
			ln.Serve()
		})
	}
	for k := range t.doors {
		if old := p.retiring[k]; old != nil {
			old.Leave()
		}
	}
	for k, ln := range p.captured {
		if t.doors[k] == nil {
			p.retire(k, ln)
		}
	}
	p.captured = t.doors
	if p.names != nil && p.names != t.names {
		p.names.close()
	}
	p.names = t.names
	if t.names == nil {
		return
	}
	if names, err := dns.NewNames(next.Capture.Names); err == nil { // it was checked before
		t.names.server.SetNames(names)
	}
	if t.fresh {
		p.wg.Go(func() {
			p.hold()
			t.names.serve()
		})
	}
}

// admitsOutbound refuses connections for the proxy itself: they would go round in a circle.
func (p *Proxy) admitsOutbound(target netip.AddrPort) error {
	if p.owns(target) {
		return server.ErrNotCaptured
	}
	return nil
}

// admitsInbound also refuses what is not for this workload at all: a neighbour may send us packets for any address, and would
// have them carried there with our identity.
func (p *Proxy) admitsInbound(target netip.AddrPort) error {
	if err := p.admitsOutbound(target); err != nil {
		return err
	}
	if !p.here.has(target.Addr()) {
		return fmt.Errorf("%s is no address of this workload", target.Addr())
	}
	return nil
}

// addresses are those of the machine, looked up when one is asked for that was not known: they seldom change.
type addresses struct {
	known atomic.Pointer[map[netip.Addr]bool]

	mu     sync.Mutex
	looked time.Time
}

func (a *addresses) has(addr netip.Addr) bool {
	if m := a.known.Load(); m != nil && (*m)[addr] {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.looked) < time.Second {
		m := a.known.Load()
		return m != nil && (*m)[addr]
	}
	a.looked = time.Now()
	found := make(map[netip.Addr]bool)
	machine, _ := net.InterfaceAddrs()
	for _, m := range machine {
		if p, err := netip.ParsePrefix(m.String()); err == nil {
			found[p.Addr().Unmap()] = true
		}
	}
	a.known.Store(&found)
	return found[addr]
}

// names is the doors of captured queries: a server, and its sockets by key.
type names struct {
	bind    string
	server  *dns.Server
	packets map[string]*net.UDPConn
	streams map[string]*net.TCPListener
}

// openNames opens the doors of captured queries.
func (p *Proxy) openNames(bind string) (*names, error) {
	n := &names{bind: bind, server: dns.New(dns.Options{Log: p.o.Log}), packets: make(map[string]*net.UDPConn), streams: make(map[string]*net.TCPListener)}
	// A socket on all addresses would answer from another than was asked, and the kernel would not know the answer again.
	if ap, err := netip.ParseAddrPort(bind); err == nil && ap.Addr().IsUnspecified() {
		bind = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ap.Port()).String()
	}
	for i, addr := range twins(bind) {
		k := namesKey + "udp " + addr
		pc, err := p.packetSocket(k, addr)
		if i > 0 && absent(err) {
			continue
		}
		if err == nil {
			n.packets[k] = pc
			k = namesKey + "tcp " + addr
			var ln *net.TCPListener
			if ln, err = p.socket(k, addr); err == nil {
				n.streams[k] = ln
			}
		}
		if err != nil {
			n.discard()
			return nil, err
		}
	}
	return n, nil
}

func (p *Proxy) packetSocket(key, addr string) (*net.UDPConn, error) {
	if p.o.InheritPacket != nil {
		if c := p.o.InheritPacket(key); c != nil {
			return c, nil
		}
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	return net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap))
}

// serve answers until close.
func (n *names) serve() {
	var each sync.WaitGroup
	for _, c := range n.packets {
		each.Go(func() { n.server.ServePackets(c) })
	}
	for _, ln := range n.streams {
		each.Go(func() { n.server.ServeStreams(ln) })
	}
	each.Wait()
}

// close ends serve, once what was asked is answered.
func (n *names) close() {
	if n != nil {
		n.server.Close()
	}
}

// discard closes the sockets of names that are not served.
func (n *names) discard() {
	n.server.Close()
	for _, c := range n.packets {
		_ = c.Close()
	}
	for _, ln := range n.streams {
		_ = ln.Close()
	}
}

func (n *names) socket(key string) syscall.Conn {
	if n == nil {
		return nil
	}
	if c := n.packets[key]; c != nil {
		return c
	}
	if ln := n.streams[key]; ln != nil {
		return ln
	}
	return nil
}
