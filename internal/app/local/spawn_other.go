//go:build !linux

package local

import "syscall"

// childAttributes puts a child into a process group of its own. Without PR_SET_PDEATHSIG, children of a supervisor
// that was killed are ended by the next one, from its record of them.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
