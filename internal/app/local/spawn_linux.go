package local

import "syscall"

// childAttributes puts a child into a process group of its own, so that a Ctrl-C in the terminal reaches only the
// supervisor (which then drains in order) and so that a stop reaches the grandchildren too. The child is killed when
// the thread that started it ends, that is when the supervisor dies without stopping it (prctl(2) PR_SET_PDEATHSIG).
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
