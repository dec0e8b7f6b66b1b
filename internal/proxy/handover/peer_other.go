//go:build !linux

package handover

import (
	"errors"
	"net"
)

// Supported says whether processes can hand over on this system: it takes the sockets of messages that Linux has.
const Supported = false

func peerMayAsk(*net.UnixConn) (int, error) { return 0, errors.ErrUnsupported }
