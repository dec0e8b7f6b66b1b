package netns

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// from is the address that a program saw, without its port.
func from(answer string) string {
	fields := strings.Fields(answer)
	if len(fields) == 0 {
		return ""
	}
	host, _, err := net.SplitHostPort(fields[len(fields)-1])
	if err != nil {
		return ""
	}
	return host
}

func join(ip string, port int) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }

func want(t *testing.T, what, got string, err error, name string, froms ...string) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if first, _, _ := strings.Cut(got, " "); first != name {
		t.Errorf("%s: %q answers, want %q", what, got, name)
	}
	if len(froms) == 0 {
		return
	}
	for _, f := range froms {
		if from(got) == f {
			return
		}
	}
	t.Errorf("%s: %q: it came from %s, want %v", what, got, from(got), froms)
}

// closed is for connections that nobody serves.
func closed(t *testing.T, what, got string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: it was answered: %q", what, got)
	}
}

func TestInbound(t *testing.T) {
	w := newWorld(t)
	w.strict = true
	p := w.proxy(t)
	w.captureAll(t)
	for _, pod := range []string{pod4, pod6} {
		// What comes by way of the proxy comes from the pod itself.
		got, err := get(w.peer, join(pod, 8080), "app")
		want(t, "HTTP to "+pod, got, err, "app", pod4, "127.0.0.1")
		got, err = read(w.peer, join(pod, 9000))
		want(t, "TCP to "+pod, got, err, "nine", "127.0.0.1")
		got, err = read(w.peer, join(pod, 7000))
		want(t, "a port without a listener of its own, at "+pod, got, err, "fallback", pod)
		got, err = read(w.peer, join(pod, 7777))
		closed(t, "a port that a policy closes", got, err)
		got, err = get(w.peer, join(pod, 9443), "app")
		closed(t, "plaintext to a port that is strict", got, err)
		got, err = read(w.peer, join(pod, 7001))
		closed(t, "a port that nobody has", got, err)
		got, err = read(w.peer, join(pod, 2222))
		want(t, "an excluded port at "+pod, got, err, "excluded", peer4, peer6, resolver6, stranger6)
	}
	if log := p.output(); !strings.Contains(log, `"in-8080"`) && !strings.Contains(log, "inbound|8080||") {
		t.Errorf("the proxy has not seen the requests:\n%s", log)
	}
}

func TestOutbound(t *testing.T) {
	w := newWorld(t)
	w.proxy(t)
	w.captureAll(t)
	for _, c := range []struct{ service, stranger, source string }{{service4, stranger4, pod4}, {service6, stranger6, pod6}} {
		got, err := get(w.pod, join(c.service, 80), "web.mesh.example")
		want(t, "HTTP by host, to "+c.service, got, err, "web", pod4)
		got, err = get(w.pod, join(c.stranger, 80), "nowhere.example")
		want(t, "HTTP of strangers, to "+c.stranger, got, err, "stranger", c.source)
		got, err = get(w.pod, join(c.stranger, 80), "127.0.0.1:15000")
		want(t, "HTTP that names the proxy's own port", got, err, "stranger", c.source)
		got, err = read(w.pod, join(c.service, 5432))
		want(t, "TCP by address, to "+c.service, got, err, "database", pod4)
		got, err = read(w.pod, join(c.stranger, 6000))
		want(t, "TCP of strangers, to "+c.stranger, got, err, "six", c.source)
		got, err = read(w.pod, join(c.stranger, 6001))
		closed(t, "a port on which strangers are blocked", got, err)
		got, err = read(w.pod, join(c.stranger, 6022))
		want(t, "an excluded port", got, err, "twentytwo", c.source)
	}
	got, err := read(w.pod, "198.18.1.77:5432")
	want(t, "TCP by network", got, err, "six", pod4)
	got, err = read(w.pod, join(excluded4, 6000))
	want(t, "an excluded network", got, err, "six", pod4)
	got, err = get(w.pod, join(stranger4, 8080), "x")
	closed(t, "a port that nobody has", got, err)

	// TLS is told by the name that it asks for, as the address says nothing.
	for name, known := range map[string]bool{"tls.mesh.example": true, "other.example": false} {
		c, err := w.pod.dial("tcp", join(stranger4, 443))
		if err != nil {
			t.Fatal(err)
		}
		err = tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		_ = c.Close()
		var notTLS tls.RecordHeaderError
		if errors.As(err, &notTLS) != known { // the database speaks, and no TLS
			t.Errorf("TLS for %s: %v", name, err)
		}
	}
}

func TestSelf(t *testing.T) {
	w := newWorld(t)
	p := w.proxy(t)
	w.captureAll(t)
	lines := func() int { return strings.Count(p.output(), "inbound|8080||") }
	got, err := get(w.pod, join(self4, 80), "self.mesh.example")
	want(t, "the program calls its own Service", got, err, "app", pod4)
	eventually(t, "a call through the Service passes the inbound side, with its policies", func() bool { return lines() == 1 })
	for _, own := range []string{pod4, "127.0.0.1", pod6, "::1"} {
		got, err = get(w.pod, join(own, 8080), "app")
		want(t, "the program calls "+own, got, err, "app", own)
	}
	got, err = get(w.peer, join(pod4, 8080), "app")
	want(t, "a peer calls", got, err, "app", pod4)
	eventually(t, "that of the peer is seen", func() bool { return lines() >= 2 })
	if n := lines(); n != 2 {
		t.Errorf("%d requests came by the inbound side, want 2: what the program says to itself is its own business", n)
	}
}

// TestNoWayAround: the proxy's ports serve nobody who comes to them directly, and nothing goes round in a circle.
func TestNoWayAround(t *testing.T) {
	w := newWorld(t)
	w.proxy(t)
	w.captureAll(t)
	for _, c := range []struct {
		who  *namespace
		addr string
	}{
		{w.peer, join(pod4, 15006)}, {w.peer, join(pod6, 15006)}, {w.peer, join(pod4, 15001)}, {w.peer, join(pod4, 15053)}, {w.peer, join(pod4, 15000)},
		{w.pod, join("127.0.0.1", 15006)}, {w.pod, join("127.0.0.1", 15001)}, {w.pod, join("::1", 15001)}, {w.pod, join("::1", 15006)}, {w.pod, join(pod4, 15006)},
	} {
		got, err := get(c.who, c.addr, "web.mesh.example")
		closed(t, c.addr, got, err)
	}
	// Packets for others that a neighbour sends by way of the pod are not carried on with the pod's identity.
	w.peer.ip(t, "route", "add", "198.18.9.9", "via", pod4)
	got, err := read(w.peer, "198.18.9.9:7000")
	closed(t, "an address that is not the pod's", got, err)
	// The proxy still does what it is for, so none of this has filled it up.
	got, err = get(w.peer, join(pod4, 8080), "app")
	want(t, "after all", got, err, "app")
}

// TestWithoutTheProxy: what is captured has no way but through it; what is not, does not need it.
func TestWithoutTheProxy(t *testing.T) {
	w := newWorld(t)
	p := w.proxy(t)
	w.captureAll(t)
	got, err := read(w.pod, join(stranger4, 6000))
	want(t, "with the proxy", got, err, "six")
	p.kill()
	for what, addr := range map[string]string{"outbound": join(stranger4, 6000), "outbound IPv6": join(stranger6, 6000)} {
		if got, err := read(w.pod, addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s without a proxy: %q, %v", what, got, err)
		}
	}
	if got, err := get(w.peer, join(pod4, 8080), "app"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("inbound without a proxy: %q, %v", got, err)
	}
	got, err = read(w.pod, join(excluded4, 6000))
	want(t, "an excluded network", got, err, "six", pod4)
	got, err = read(w.pod, join(stranger4, 6022))
	want(t, "an excluded port", got, err, "twentytwo", pod4)
	got, err = read(w.peer, join(pod4, 2222))
	want(t, "an excluded port of the pod", got, err, "excluded", peer4)
	udp(t, w)

	// And when the rules are gone, all is as it was. Cleaning twice is no error.
	w.capture(t, "--clean")
	w.capture(t, "--clean")
	got, err = read(w.pod, join(stranger4, 6000))
	want(t, "after --clean", got, err, "six", pod4)
	got, err = get(w.peer, join(pod4, 8080), "app")
	want(t, "after --clean", got, err, "app", peer4)
}

// udp checks that packets pass untouched, both ways, also queries to a resolver that is not the pod's.
func udp(t *testing.T, w *world) {
	t.Helper()
	for _, c := range []struct {
		client, server *namespace
		addr           string
		sees           string
	}{{w.pod, w.peer, join(peer4, 6001), pod4}, {w.pod, w.peer, join(peer6, 6001), pod6}, {w.peer, w.pod, join(pod4, 6001), peer4}} {
		s := c.server.packets(t, c.addr)
		nc, err := c.client.dial("udp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write([]byte("hello"))
		buf := make([]byte, 64)
		_ = s.SetDeadline(time.Now().Add(time.Minute))
		n, source, err := s.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "hello" || from(source.String()) != c.sees {
			t.Errorf("UDP to %s: %q from %v: %v", c.addr, buf[:n], source, err)
		} else if _, err := s.WriteTo([]byte("bye"), source); err != nil {
			t.Error(err)
		} else if n, err := nc.Read(buf); err != nil || string(buf[:n]) != "bye" {
			t.Errorf("UDP back from %s: %q %v", c.addr, buf[:n], err)
		}
		_ = nc.Close()
		_ = s.Close()
	}
	if got, err := lookup(w.pod, "udp", other4, "other.example.", dnsmessage.TypeA); err != nil || got != stranger4 {
		t.Errorf("a query to another resolver: %q %v", got, err)
	}
}

func TestQueries(t *testing.T) {
	w := newWorld(t)
	w.proxy(t)
	w.captureAll(t)
	udp(t, w)
	for _, network := range []string{"udp", "tcp"} {
		for _, server := range []string{resolver4, resolver6} {
			for _, c := range []struct {
				name string
				typ  dnsmessage.Type
				want string
			}{
				{"api.mesh.example.", dnsmessage.TypeA, service4},
				{"api.mesh.example.", dnsmessage.TypeAAAA, service6},
				{"www.example.org.", dnsmessage.TypeA, stranger4},
			} {
				if got, err := lookup(w.pod, network, server, c.name, c.typ); err != nil || got != c.want {
					t.Errorf("%s to %s for %s %s: %q %v", network, server, c.name, c.typ, got, err)
				}
			}
		}
	}
	w.asked.Range(func(k, _ any) bool {
		if strings.HasPrefix(k.(string), "api.mesh.example.") {
			t.Errorf("the resolver was asked for a name of the mesh: %s", k)
		}
		return true
	})
	if _, ok := w.asked.Load("www.example.org. " + resolver4); !ok {
		t.Error("the resolver was not asked")
	}
	// The ports of many queries are soon those of earlier ones of the proxy: none may be taken for more of those.
	if out, err := w.pod.run("sh", "-c", "echo 40000 40031 > /proc/sys/net/ipv4/ip_local_port_range"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for i := range 300 {
		if got, err := lookup(w.pod, "udp", resolver4, fmt.Sprintf("n%d.example.org.", i), dnsmessage.TypeA); err != nil || got != stranger4 {
			t.Fatalf("query %d: %q %v", i, got, err)
		}
	}
}

// TestRulesAreReplaced: setting them again, under traffic, fails nothing; and there may be many.
func TestRulesAreReplaced(t *testing.T) {
	w := newWorld(t)
	w.proxy(t)
	w.captureAll(t)
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := get(w.peer, join(pod4, 8080), "app")
			want(t, "while rules are set", got, err, "app", pod4)
			if err != nil {
				return
			}
		}
	})
	for range 10 {
		w.captureAll(t)
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf("10.%d.%d.0/24", i/250, i%250))
	}
	w.capture(t, "--exclude-outbound-ip-ranges="+strings.Join(many, ",")+","+excluded4+"/32")
	close(stop)
	load.Wait()
	got, err := read(w.pod, join(excluded4, 6000))
	want(t, "the last of many", got, err, "six", pod4)
}

// TestUpgrade: a new proxy takes the doors of captured traffic over, and nobody notices.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	old := w.proxy(t)
	w.captureAll(t)
	stop := make(chan struct{})
	var load sync.WaitGroup
	counts := make([]int, 4)
	for i, f := range []func() (string, error){
		func() (string, error) { return get(w.peer, join(pod4, 8080), "app") },
		func() (string, error) { return get(w.pod, join(service6, 80), "web.mesh.example") },
		func() (string, error) { return lookup(w.pod, "udp", resolver4, "www.example.org.", dnsmessage.TypeA) },
		func() (string, error) { return lookup(w.pod, "tcp", resolver6, "api.mesh.example.", dnsmessage.TypeA) },
	} {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := f(); err != nil {
					t.Errorf("kind %d, after %d: %q %v", i, counts[i], got, err)
					return
				}
				counts[i]++
			}
		})
	}
	for range 3 {
		next := w.proxy(t)
		select {
		case <-old.done:
		case <-time.After(time.Minute):
			t.Fatalf("the old proxy goes on:\n%s", old.output())
		}
		if state := old.cmd.ProcessState; state.ExitCode() != 0 {
			t.Errorf("the old proxy: %s", state)
		}
		old = next
	}
	close(stop)
	load.Wait()
	t.Logf("requests and queries: %v", counts)
	for i, n := range counts {
		if n < 10 {
			t.Errorf("kind %d: only %d", i, n)
		}
	}
}

// TestWithoutIPv6: a pod whose IPv6 is switched off has IPv4.
func TestWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	if out, err := w.pod.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	w.proxy(t)
	w.captureAll(t)
	got, err := get(w.peer, join(pod4, 8080), "app")
	want(t, "inbound", got, err, "app", pod4)
	got, err = read(w.pod, join(service4, 5432))
	want(t, "outbound", got, err, "database", pod4)
	if got, err := lookup(w.pod, "udp", resolver4, "api.mesh.example.", dnsmessage.TypeA); err != nil || got != service4 {
		t.Errorf("a query: %q %v", got, err)
	}
}

// TestPermissions: who may not set rules is told what is missing.
func TestPermissions(t *testing.T) {
	w := newWorld(t)
	out, err := w.pod.run("setpriv", "--reuid", proxyUser, "--regid", proxyUser, "--clear-groups", "--bounding-set=-all", "--", binary, "capture")
	if err == nil || !strings.Contains(out, "NET_ADMIN") {
		t.Errorf("%v %s", err, out)
	}
}
