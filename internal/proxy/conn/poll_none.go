//go:build !linux || portable

package conn

import "runtime"

// Poll lets others have their turn between the parts of work that comes all at once: here only those who can run already. On
// Linux it asks the kernel for news of sockets as well.
type Poll struct{}

// Look yields.
func (p *Poll) Look() { runtime.Gosched() }

// Close does nothing.
func (p *Poll) Close() {}
