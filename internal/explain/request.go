package explain

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Header is one header line of a request.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Request is a request as a person writes it.
type Request struct {
	Method  string   `json:"method"` // default GET; POST for grpc://
	URL     string   `json:"url"`    // http://, grpc://, or tcp:// and https:// for opaque connections; http:// when absent
	Headers []Header `json:"headers,omitempty"`
	// Client is where a stranger of a gateway comes from; the zero address is 127.0.0.1.
	Client netip.Addr `json:"client,omitzero"`
}

// ParseHeader reads "name: value".
func ParseHeader(s string) (Header, error) {
	name, value, ok := strings.Cut(s, ":")
	h := Header{Name: strings.ToLower(strings.TrimSpace(name)), Value: strings.TrimSpace(value)}
	if !ok || !message.IsLowerToken([]byte(h.Name)) || !message.IsValue([]byte(h.Value)) {
		return Header{}, fmt.Errorf("%q is not a header; write it as 'name: value'", s)
	}
	return h, nil
}

// sent is a Request in the form that proxies see.
type sent struct {
	message.Request
	opaque bool // bytes that no proxy of the mesh reads
	target string
}

// noRequestID stands for the identifier that the first proxy makes.
const noRequestID = "00000000-0000-4000-8000-000000000000"

// canonical brings a request into the form that the codecs make of it.
func (r *Request) canonical() (*sent, error) {
	raw := r.URL
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		scheme, rest = "http", raw
	}
	s := &sent{}
	s.Major, s.Minor = 1, 1
	method := r.Method
	switch scheme = strings.ToLower(scheme); scheme {
	case "http":
	case "grpc":
		s.Major, s.Minor = 2, 0
		scheme = "http"
		if method == "" {
			method = "POST"
		}
		s.Fields.Set("content-type", []byte("application/grpc"))
		s.Fields.Set("te", []byte("trailers"))
	case "https", "tcp", "tls":
		s.opaque = true
	default:
		return nil, fmt.Errorf("%q: scheme %s is not known; use http, grpc, https or tcp", raw, scheme)
	}
	if method == "" {
		method = "GET"
	}
	if !message.IsToken([]byte(method)) {
		return nil, fmt.Errorf("%q is not a method", method)
	}
	rest, _, _ = strings.Cut(rest, "#") // clients keep the fragment for themselves
	authority, target := rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, target = rest[:i], rest[i:]
		if target[0] == '?' {
			target = "/" + target
		}
	}
	var err error
	if s.Path, s.Query, s.HasQuery, err = message.SplitTarget([]byte(target)); err != nil {
		return nil, fmt.Errorf("%q has a path that proxies refuse with 400: %w", raw, err)
	}
	if s.Authority, s.Host, s.Port, err = message.ParseAuthority([]byte(authority)); err != nil {
		return nil, fmt.Errorf("%q is not a URL: %w; write it as http://SERVICE:PORT/PATH", raw, err)
	}
	s.target = string(s.Authority)
	s.Method, s.Scheme, s.Absolute = []byte(method), []byte(scheme), true
	for _, h := range r.Headers {
		name := strings.ToLower(h.Name)
		if name == "host" || name == ":authority" {
			if s.Authority, s.Host, s.Port, err = message.ParseAuthority([]byte(h.Value)); err != nil {
				return nil, fmt.Errorf("header host: %q: %w", h.Value, err)
			}
			continue
		}
		s.Fields.Add(name, []byte(h.Value))
	}
	return s, nil
}

// sanitize removes the headers that only a proxy may write, and adds what the first proxy says (internal/proxy/stack). peer is whose
// connection it is; client, whom the request comes from.
func (s *sent) sanitize(l *plan.Listener, peer netip.Addr) (client netip.Addr) {
	edge := l.Direction == plan.Edge
	// Also as programs may read it.
	is := func(name []byte, ours string) bool { return string(name) == ours || message.Means(name, ours) }
	begins := func(name []byte, ours string) bool {
		return bytes.HasPrefix(name, []byte(ours)) || message.Means(name, ours)
	}
	kept := s.Fields[:0]
	id := false
	for _, f := range s.Fields {
		name := string(f.Name)
		switch {
		case begins(f.Name, "x-malha-"), is(f.Name, "x-forwarded-client-cert"), is(f.Name, "l5d-client-id"), name == "x-envoy-upstream-rq-timeout-ms":
			continue
		case edge && name == "x-forwarded-for" && l.TrustedHops > 0:
		case edge && name == "x-forwarded-proto" && l.TrustedHops > 0 && (string(f.Value) == "http" || string(f.Value) == "https"):
		case edge && (begins(f.Name, "x-envoy-") || begins(f.Name, "x-forwarded-")):
			continue
		case name == "x-request-id":
			if id {
				continue
			}
			id = true
		}
		kept = append(kept, f)
	}
	s.Fields = kept
	if !id {
		s.Fields.Add("x-request-id", []byte(noRequestID))
	}
	if !edge {
		return peer
	}
	return s.forwarded(int(l.TrustedHops), peer)
}

// forwarded writes whom the request comes from, as an edge knows it. Of so many proxies in front of it each wrote down whom it saw.
func (s *sent) forwarded(hops int, peer netip.Addr) (client netip.Addr) {
	var seen []string
	for _, f := range s.Fields {
		if string(f.Name) == "x-forwarded-for" && len(f.Value) > 0 {
			seen = append(seen, string(f.Value))
		}
	}
	s.Fields.Del("x-forwarded-for")
	client = peer
	if all := strings.Split(strings.Join(seen, ","), ","); hops > 0 && hops <= len(all) {
		if a, err := netip.ParseAddr(strings.TrimSpace(all[len(all)-hops])); err == nil {
			client = a
		}
	}
	s.Fields.Add("x-forwarded-for", []byte(strings.Join(append(seen, peer.String()), ", ")))
	if _, ok := s.Fields.Get("x-forwarded-proto"); !ok {
		s.Fields.Add("x-forwarded-proto", s.Scheme)
	}
	return client
}

// grpc reports whether the request is a gRPC call.
func (s *sent) grpc() bool {
	v, _ := s.Fields.Get("content-type")
	return s.Major == 2 && strings.HasPrefix(string(v), "application/grpc")
}

// copy returns a request that can be changed without changing s.
func (s *sent) copy() *sent {
	c := *s
	c.Fields = append(message.Fields(nil), s.Fields...)
	return &c
}

// Check reports what is wrong with a request, whoever sends it.
func (r *Request) Check() error {
	_, err := r.canonical()
	return err
}
