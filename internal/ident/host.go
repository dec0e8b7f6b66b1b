package ident

import (
	"cmp"
	"net/netip"
	"strings"
)

// HostCovers reports whether a host of a rule, which may be "*" or "*.suffix", covers a canonical host.
func HostCovers(rule, host string) bool {
	if suffix, ok := strings.CutPrefix(rule, "*"); ok {
		return len(host) > len(suffix) && strings.HasSuffix(host, suffix)
	}
	return rule == host
}

// HostOverlap returns the more specific of two rule hosts when one covers the other: the hosts that both mean.
func HostOverlap(a, b string) (string, bool) {
	switch {
	case a == b || HostCovers(b, a):
		return a, true
	case HostCovers(a, b):
		return b, true
	}
	return "", false
}

// CompareSpecific orders rule hosts, the most specific first: exact ones by name, then wildcards from the longest to "*".
func CompareSpecific(a, b string) int {
	wildA, wildB := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	switch {
	case wildA && !wildB:
		return 1
	case !wildA && wildB:
		return -1
	case wildA:
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	}
	return cmp.Compare(a, b)
}

// HostIsAddress reports whether the host of a request (without its port) is an IP address or localhost, which no name server
// has a say in. A page in a browser, whose name was made to resolve to this machine, has no such host (DNS rebinding).
func HostIsAddress(host string) bool {
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}
