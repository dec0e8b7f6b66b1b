//go:build !linux

package server

import (
	"net"
	"net/netip"
)

// originalTarget knows of no connection: only Linux redirects them to a proxy, in pods.
func originalTarget(*net.TCPConn) (netip.AddrPort, error) { return netip.AddrPort{}, ErrNotCaptured }
