package netns

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Who is where.
const (
	pod4, pod6           = "198.18.0.2", "fd00:198:18::2"
	peer4, peer6         = "198.18.0.1", "fd00:198:18::1"
	resolver4, resolver6 = "198.18.0.53", "fd00:198:18::53"
	other4               = "198.18.0.54"                      // a resolver that is not the pod's
	service4, service6   = "198.18.1.10", "fd00:198:18:1::10" // of the mesh: nobody has the address
	self4                = "198.18.1.20"                      // the Service of the pod
	stranger4, stranger6 = "198.18.2.1", "fd00:198:18:2::1"   // outside of the mesh
	excluded4            = "198.18.3.1"                       // outside, and left alone
)

// world is a pod and its neighbour, with a link between them.
type world struct {
	pod, peer *namespace
	dir       string
	strict    bool     // port 9443 takes mutual TLS only; the proxy has no identity, and is not ready then
	asked     sync.Map // names that the resolver was asked for
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "malha-netns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil { // the proxy is another user
		t.Fatal(err)
	}
	w := &world{pod: newNamespace(t, "pod"), peer: newNamespace(t, "peer"), dir: dir}
	w.pod.ip(t, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", w.peer.name)
	for n, addrs := range map[*namespace][]string{
		w.pod:  {pod4 + "/24", pod6 + "/64"},
		w.peer: {peer4 + "/24", peer6 + "/64", resolver4 + "/32", resolver6 + "/128", other4 + "/32", stranger4 + "/32", stranger6 + "/128", excluded4 + "/32"},
	} {
		for _, a := range addrs {
			if strings.Contains(a, ":") {
				n.ip(t, "addr", "add", a, "dev", "eth0", "nodad")
			} else {
				n.ip(t, "addr", "add", a, "dev", "eth0")
			}
		}
		n.ip(t, "link", "set", "eth0", "up")
	}
	w.pod.ip(t, "route", "add", "default", "via", peer4)
	w.pod.ip(t, "-6", "route", "add", "default", "via", peer6)
	w.write(t, "resolv.conf", "nameserver "+resolver4+"\nnameserver "+resolver6+"\n")

	// The program of the pod.
	w.http(t, w.pod, ":8080", "app")
	w.banner(t, w.pod, ":9000", "nine")
	w.banner(t, w.pod, ":7000", "fallback")
	w.banner(t, w.pod, ":7777", "secret")
	w.banner(t, w.pod, ":2222", "excluded")
	// Others.
	w.http(t, w.peer, ":8081", "web")
	w.http(t, w.peer, ":80", "stranger")
	w.banner(t, w.peer, ":5433", "database")
	w.banner(t, w.peer, ":6000", "six")
	w.banner(t, w.peer, ":6022", "twentytwo")
	for _, addr := range []string{resolver4, resolver6, other4} {
		w.resolve(t, addr)
	}
	return w
}

func (w *world) write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(w.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// http serves requests with its name, the host that was asked for and the address from where.
func (w *world) http(t *testing.T, n *namespace, addr, name string) {
	ln := n.listen(t, addr)
	s := &http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(out, "%s %s %s", name, r.Host, r.RemoteAddr)
	})}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
}

// banner speaks first: its name and the address of the client.
func (w *world) banner(t *testing.T, n *namespace, addr, name string) {
	ln := n.listen(t, addr)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
			_ = c.Close()
		}
	}()
}

// resolve answers every query for an address with one, over UDP and TCP, and notes the name.
func (w *world) resolve(t *testing.T, addr string) {
	c := w.peer.packets(t, net.JoinHostPort(addr, "53"))
	ln := w.peer.listen(t, net.JoinHostPort(addr, "53"))
	t.Cleanup(func() { _ = c.Close(); _ = ln.Close() })
	answer := func(msg []byte) []byte {
		var m dnsmessage.Message
		if m.Unpack(msg) != nil || len(m.Questions) != 1 {
			return nil
		}
		q := m.Questions[0]
		w.asked.Store(q.Name.String()+" "+addr, true)
		m.Response = true
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
			Body: &dnsmessage.AResource{A: netip.MustParseAddr(stranger4).As4()}}}
		out, _ := m.Pack()
		return out
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(answer(buf[:n]), from)
		}
	}()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			var head [2]byte
			if _, err := io.ReadFull(nc, head[:]); err == nil {
				msg := make([]byte, int(head[0])<<8|int(head[1]))
				if _, err := io.ReadFull(nc, msg); err == nil {
					out := answer(msg)
					_, _ = nc.Write(append([]byte{byte(len(out) >> 8), byte(len(out))}, out...))
				}
			}
			_ = nc.Close()
		}
	}()
}

// plan is what a control plane would make of the pod.
func (w *world) plan() *plan.Plan {
	to := func(c string) []plan.Destination { return []plan.Destination{{Cluster: c, Weight: 1}} }
	table := func(name string, otherwise plan.Otherwise, hosts ...string) plan.RouteTable { // host, cluster, …
		rt := plan.RouteTable{Name: name, Otherwise: otherwise}
		for i := 0; i < len(hosts); i += 2 {
			rt.Hosts = append(rt.Hosts, plan.VirtualHost{Name: hosts[i], Domains: []string{hosts[i]}, Routes: []plan.Route{{Name: "default", Forward: to(hosts[i+1])}}})
		}
		return rt
	}
	cluster := func(name string, p ident.Protocol) plan.Cluster {
		return plan.Cluster{Name: name, Host: name, Port: 80, Protocol: p}
	}
	ends := func(name, addr string) plan.Endpoints {
		return plan.Endpoints{Cluster: name, Endpoints: []plan.Endpoint{{Address: addr}}}
	}
	anywhere := cluster("inbound|0||", ident.TCP)
	anywhere.Discovery = plan.AsRequested
	p := &plan.Plan{
		Node: plan.Node{Name: ident.Name{Namespace: "default", Name: "app"}, Role: plan.Sidecar},
		Capture: &plan.Capture{
			Inbound: "0.0.0.0:15006", Outbound: "127.0.0.1:15001", DNS: "127.0.0.1:15053",
			Names: []plan.NameRecord{{Name: "api.mesh.example", Addresses: []string{service4, service6}}},
		},
		Listeners: []plan.Listener{
			{Name: "forward", Direction: plan.Outbound, Protocol: ident.HTTP, Forward: true, Ports: []plan.ForwardPort{
				{Port: 80, Protocol: ident.HTTP, Routes: "out-80"},
				{Port: 443, Protocol: ident.TLS, Hosts: []plan.ForwardHost{{Host: "tls.mesh.example", TCP: to("database")}}, Otherwise: plan.Block},
				{Port: 5432, Protocol: ident.TCP, Hosts: []plan.ForwardHost{
					{Host: "api.mesh.example", TCP: to("database"), Addresses: []string{service4, service6}},
					{Host: "range.mesh.example", TCP: to("six"), Addresses: []string{"198.18.1.0/24"}}}},
				{Port: 6001, Protocol: ident.TCP, Otherwise: plan.Block},
			}},
			{Name: "in-0", Direction: plan.Inbound, TLS: plan.TLSPermissive, TCP: to("inbound|0||"), Policies: []string{"no-7777"}},
			{Name: "in-8080", Direction: plan.Inbound, Protocol: ident.HTTP, Port: 8080, TLS: plan.TLSPermissive, Routes: "in-8080"},
			{Name: "in-9000", Direction: plan.Inbound, Protocol: ident.TCP, Port: 9000, TLS: plan.TLSDisable, TCP: to("inbound|9000||")},
		},
		Routes: []plan.RouteTable{
			table("in-8080", plan.NotFound, "*", "inbound|8080||"),
			table("out-80", plan.Passthrough, "self.mesh.example", "self", "web.mesh.example", "web"),
		},
		Clusters: []plan.Cluster{cluster("database", ident.TCP), anywhere, cluster("inbound|8080||", ident.HTTP), cluster("inbound|9000||", ident.TCP),
			cluster("self", ident.HTTP), cluster("six", ident.TCP), cluster("web", ident.HTTP)},
		Endpoints: []plan.Endpoints{ends("database", peer4+":5433"), ends("inbound|8080||", pod4+":8080"), ends("inbound|9000||", "127.0.0.1:9000"),
			ends("self", pod4+":8080"), ends("six", peer4+":6000"), ends("web", peer4+":8081")},
		Policies: []plan.Policy{{Name: "no-7777", Action: plan.Deny, Rules: []plan.PolicyRule{{To: []plan.Operation{{Ports: []int{7777}}}}}}},
	}
	if w.strict {
		p.Listeners = append(p.Listeners, plan.Listener{Name: "in-9443", Direction: plan.Inbound, Protocol: ident.TCP, Port: 9443, TLS: plan.TLSStrict, TCP: to("inbound|9000||")})
	}
	return p
}

// proxy starts a proxy in the pod and waits until it is ready.
func (w *world) proxy(t *testing.T, args ...string) *process {
	t.Helper()
	b, err := json.Marshal(w.plan())
	if err != nil {
		t.Fatal(err)
	}
	file := w.write(t, "plan.json", string(b))
	p := w.pod.start(t, filepath.Join(w.dir, "resolv.conf"), append([]string{binary, "--plan", file, "--admin", "127.0.0.1:15000", "--access-log", "stdout",
		"--log-level", "debug", "--drain-timeout", "5s", "--handover", filepath.Join(w.dir, "handover.sock")}, args...)...)
	eventually(t, "the proxy is ready", func() bool {
		select {
		case <-p.done:
			t.Fatalf("the proxy has ended:\n%s", p.output())
		default:
		}
		return strings.Contains(p.output(), "plan is in force")
	})
	t.Cleanup(func() {
		if t.Failed() {
			out := p.output()
			t.Logf("the proxy said, in the end:\n%s", out[max(0, len(out)-6000):])
		}
	})
	return p
}

// capture sets the rules of the pod.
func (w *world) capture(t *testing.T, args ...string) {
	t.Helper()
	if out, err := w.pod.run(append([]string{binary, "capture"}, args...)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func (w *world) captureAll(t *testing.T) {
	t.Helper()
	w.capture(t, "--dns-port=15053", "--resolv-conf="+filepath.Join(w.dir, "resolv.conf"),
		"--exclude-inbound-ports=2222", "--exclude-outbound-ip-ranges="+excluded4, "--exclude-outbound-ports=6022")
}

// get asks for / of a host, over a connection to an address.
func get(n *namespace, addr, host string) (string, error) {
	c, err := n.dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r.Body)
	if r.StatusCode != 200 {
		return "", fmt.Errorf("status %d: %s", r.StatusCode, b)
	}
	return string(b), err
}

// read connects and reads to the end.
func read(n *namespace, addr string) (string, error) {
	c, err := n.dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSpace(string(b)), err
}

// lookup asks a resolver for an address.
func lookup(n *namespace, network, server, name string, typ dnsmessage.Type) (string, error) {
	c, err := n.dial(network, net.JoinHostPort(server, "53"))
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(lookups.Add(1)), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
	msg, err := q.Pack()
	if err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	if network == "tcp" {
		msg = append([]byte{byte(len(msg) >> 8), byte(len(msg))}, msg...)
	}
	if _, err := c.Write(msg); err != nil {
		return "", err
	}
	size, err := c.Read(buf)
	if err != nil {
		return "", err
	}
	buf = buf[:size]
	if network == "tcp" {
		buf = buf[2:]
	}
	var m dnsmessage.Message
	if err := m.Unpack(buf); err != nil {
		return "", err
	}
	if m.ID != q.ID {
		return "", fmt.Errorf("the answer's number is %d, not %d", m.ID, q.ID)
	}
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			return netip.AddrFrom4(b.A).String(), nil
		case *dnsmessage.AAAAResource:
			return netip.AddrFrom16(b.AAAA).String(), nil
		}
	}
	return m.RCode.String(), nil
}

var lookups atomic.Uint32
