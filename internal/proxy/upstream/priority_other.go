//go:build !linux

package upstream

import (
	"errors"
	"syscall"
)

// prioritize refuses priorities: Linux alone has them, and needs them, where it captures a pod's traffic.
func prioritize(_ syscall.RawConn, priority int) error {
	if priority == 0 {
		return nil
	}
	return errors.ErrUnsupported
}
