package local

import (
	"os/exec"
	"runtime"
)

// A spawner starts all children from one thread that lives as long as the mesh: the kernel ties a child's
// parent-death signal to the thread that forked it, not to the process, and Go ends threads when it likes.
type spawner struct {
	starts chan spawn
	quit   chan struct{}
	done   chan struct{}
}

type spawn struct {
	cmd *exec.Cmd
	err chan<- error
}

func newSpawner() *spawner {
	return &spawner{starts: make(chan spawn), quit: make(chan struct{}), done: make(chan struct{})}
}

// run owns the thread; it returns after stop.
func (s *spawner) run() {
	defer close(s.done)
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	for {
		select {
		case r := <-s.starts:
			r.err <- r.cmd.Start()
		case <-s.quit:
			return
		}
	}
}

// start is cmd.Start on the spawner's thread.
func (s *spawner) start(cmd *exec.Cmd) error {
	err := make(chan error, 1)
	s.starts <- spawn{cmd, err}
	return <-err
}

// stop ends the thread. All children have to be gone by now: the kernel kills those that are not.
func (s *spawner) stop() {
	close(s.quit)
	<-s.done
}
