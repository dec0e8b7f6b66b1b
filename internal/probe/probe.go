// Package probe is the words in which the injector tells a proxy how its application is to be asked whether it is well.
//
// The kubelet speaks plain text from outside the mesh, so its probes are rewritten to paths of the proxy's health port
// (Path), and what they were stands in the environment of the proxy (Env), as JSON (Set). The proxy asks only what is there.
package probe

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// Env is the environment variable that holds a Set.
const Env = "MALHA_PROXY_PROBES"

// Set is probes by their path on the health port.
type Set map[string]Probe

// Probe is one question. Exactly one of HTTP, TCP and GRPC is set.
type Probe struct {
	HTTP    *HTTP `json:"http,omitempty"`
	TCP     *TCP  `json:"tcp,omitempty"`
	GRPC    *GRPC `json:"grpc,omitempty"`
	Seconds int   `json:"seconds,omitempty"` // the longest time to wait for the answer; 0: 1, as Kubernetes has it
}

// HTTP is a GET. A status from 200 to 399 is well.
type HTTP struct {
	Port    int      `json:"port"`
	Path    string   `json:"path,omitempty"` // with its query; "" is "/"
	TLS     bool     `json:"tls,omitempty"`  // without verification, as the kubelet has it
	Headers []Header `json:"headers,omitempty"`
}

// Header is one header field; "Host" names the host.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TCP is a connection that is made and closed.
type TCP struct {
	Port int `json:"port"`
}

// GRPC is grpc.health.v1.Health/Check.
type GRPC struct {
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}

// The questions, as Istio's agent spells them.
const (
	Live  = "livez"
	Ready = "readyz"
	Start = "startupz"

	PostStart = "poststartz"
	PreStop   = "prestopz"
)

// The folders of paths.
const (
	Health    = "/app-health/"
	Lifecycle = "/app-lifecycle/"
)

// Path returns the path of a question about a container.
func Path(container, question string) string {
	if question == PostStart || question == PreStop {
		return Lifecycle + container + "/" + question
	}
	return Health + container + "/" + question
}

// Encode returns the value of Env.
func (s Set) Encode() (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("probes: %w", err)
	}
	return string(b), nil
}

// Decode reads the value of Env; "" is no probe.
func Decode(v string) (Set, error) {
	if v == "" {
		return nil, nil
	}
	var s Set
	d := json.NewDecoder(strings.NewReader(v))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("%s: %w; it is written by the injector", Env, err)
	}
	for path, p := range s {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", Env, path, err)
		}
		if !strings.HasPrefix(path, Health) && !strings.HasPrefix(path, Lifecycle) {
			return nil, fmt.Errorf("%s: path %q is below neither %s nor %s", Env, path, Health, Lifecycle)
		}
	}
	return s, nil
}

func (p *Probe) check() error {
	set, port := 0, 0
	if p.HTTP != nil {
		set, port = set+1, p.HTTP.Port
		if strings.ContainsAny(p.HTTP.Path, " \r\n\t\x00") {
			return fmt.Errorf("path %q holds white space", p.HTTP.Path)
		}
	}
	if p.TCP != nil {
		set, port = set+1, p.TCP.Port
	}
	if p.GRPC != nil {
		set, port = set+1, p.GRPC.Port
	}
	switch {
	case set != 1:
		return fmt.Errorf("want one of http, tcp and grpc, got %d", set)
	case port < 1 || port > 65535:
		return fmt.Errorf("port %d is not from 1 to 65535", port)
	case p.Seconds < 0:
		return fmt.Errorf("%d seconds are less than none", p.Seconds)
	}
	return nil
}

// Loopback returns the addresses at which the application may listen for questions, the usual one first.
func Loopback(port int) []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)),
		netip.AddrPortFrom(netip.IPv6Loopback(), uint16(port)),
	}
}
