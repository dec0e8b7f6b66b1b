//go:build !linux

package handover

// Supported says whether processes can hand over on this system: it takes the sockets of messages that Linux has.
const Supported = false
