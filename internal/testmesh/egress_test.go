package testmesh

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// outsider is a server that the mesh does not know, at an address of the loopback network.
func outsider(t *testing.T, ip string) (port string) {
	t.Helper()
	ln, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-App", ip) }))
	_ = s.Listener.Close()
	s.Listener = ln
	s.Start()
	t.Cleanup(s.Close)
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

// EgressNetworks of some networks close these, by the longest one that has the address, and nothing else; what is asked for by
// name is decided by the address that the name has.
func TestEgressNetworks(t *testing.T) {
	t.Parallel()
	network := func(namespace, name, policy, cidrs string) string {
		return fmt.Sprintf("\n---\napiVersion: policy.linkerd.io/v1alpha1\nkind: EgressNetwork\nmetadata: {name: %s, namespace: %s}\nspec: {trafficPolicy: %s, networks: %s}\n",
			name, namespace, policy, cidrs)
	}
	rules := shop + network("default", "closed", "Deny", "[{cidr: 127.0.0.0/8, except: [127.2.0.0/16]}]") + network("default", "hole", "Allow", "[{cidr: 127.1.0.0/16}]") +
		network("linkerd-egress", "everywhere", "Deny", "[{cidr: 127.2.0.0/16}]") // not asked: the namespace has its own
	m := Start(t, rules)
	one, two, three := outsider(t, "127.0.0.1"), outsider(t, "127.1.0.1"), outsider(t, "127.2.0.1")
	urls := map[string]int{
		"127.0.0.1:" + one: 502, "localhost:" + one: 502, "127.1.0.1:" + two: 200, "127.2.0.1:" + three: 200,
	}
	client := m.Client("client")
	check := func(urls map[string]int) {
		t.Helper()
		for host, want := range urls {
			a := m.Do(client, "GET", "http://"+host+"/", "")
			if a.Status != want || (want == 200) != (a.By != "") {
				t.Errorf("GET %s: %d by %q, want %d", host, a.Status, a.By, want)
			}
			if got := connectTo(t, m.Instance("client").Forward, host); got != want {
				t.Errorf("CONNECT %s: %d, want %d", host, got, want)
			}
		}
	}
	check(urls)
	// Connections that were made under other rules are not used again.
	m.Apply(rules + network("default", "localhost", "Allow", "[{cidr: 127.0.0.1/32}]") + network("default", "second", "Deny", "[{cidr: 127.2.0.1/32}]"))
	urls["127.0.0.1:"+one], urls["localhost:"+one], urls["127.2.0.1:"+three] = 200, 200, 502
	check(urls)
	// A Deny without networks with holes in it.
	m.Apply(shop + "\n---\napiVersion: policy.linkerd.io/v1alpha1\nkind: EgressNetwork\nmetadata: {name: all}\nspec: {trafficPolicy: Deny}\n" +
		network("default", "hole", "Allow", "[{cidr: 127.1.0.0/16}]"))
	urls["127.0.0.1:"+one], urls["localhost:"+one], urls["127.2.0.1:"+three] = 502, 502, 502
	check(urls)
}

// connectTo asks a forward proxy for a tunnel, and returns its answer.
func connectTo(t *testing.T, proxy, host string) int {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", host, host); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "CONNECT"})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	return r.StatusCode
}
