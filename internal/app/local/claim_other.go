//go:build !linux

package local

import "io"

// claim takes something that belongs to one mesh of this machine. Here nothing can be claimed that would be given back when this
// process is killed: meshes look in different places, as chance has it, and at what is in use.
func claim(string, int) (io.Closer, error) { return io.NopCloser(nil), nil }
