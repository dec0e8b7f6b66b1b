package local

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// A process that ends is started again after a pause that doubles from restartMin to restartMax. One that ran for
// restartReset counts as having worked: its next pause is restartMin again.
const (
	restartMin   = 200 * time.Millisecond
	restartMax   = 15 * time.Second
	restartReset = 10 * time.Second
)

// processSpec says how to start a process.
type processSpec struct {
	Path  string // absolute
	Args  []string
	Env   []string
	Dir   string
	Grace time.Duration // from SIGTERM to SIGKILL
}

// exit is how a process ended.
type exit struct {
	Err  error // what wait(2) or execve(2) said; nil for status 0
	Ran  time.Duration
	Next time.Duration // pause until it is started again
}

// String returns "exit status 1", "signal: killed", "exit status 0" or the reason why it could not be started.
func (e exit) String() string {
	if e.Err == nil {
		return "exit status 0"
	}
	return e.Err.Error()
}

// verb says what a program does that ends so again and again.
func (e exit) verb() string {
	if e.Err == nil {
		return "ending"
	}
	return "crashing"
}

// advice is for a program that ended as if all was well: it is done, or it went to the background, where nobody looks after it.
func (e exit) advice() string {
	if e.Err == nil {
		return "; a workload's program has to stay, in the foreground"
	}
	return ""
}

// process keeps one program running. Its run method owns everything below; the callbacks are called from it.
type process struct {
	name    string // "default/reviews-v2"
	spec    processSpec
	spawner *spawner
	orphans *orphans
	stdout  *lineWriter
	stderr  *lineWriter
	started func(pid int)
	exited  func(exit)
}

// run keeps the program alive until ctx ends; then it asks it to stop (SIGTERM to its group), and after Grace, or
// when kill ends, makes it stop (SIGKILL). It returns once the program has gone.
func (p *process) run(ctx, kill context.Context) {
	pause := restartMin
	for ctx.Err() == nil {
		began := time.Now()
		err := p.once(ctx, kill)
		if ctx.Err() != nil {
			return
		}
		ran := time.Since(began)
		if ran >= restartReset {
			pause = restartMin
		}
		p.exited(exit{Err: err, Ran: ran, Next: pause})
		if !slept(ctx, pause) {
			return
		}
		pause = min(2*pause, restartMax)
	}
}

// slept waits, and reports false when ctx ended first.
func slept(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// once runs the program to its end.
func (p *process) once(ctx, kill context.Context) error {
	cmd := exec.Command(p.spec.Path, p.spec.Args...)
	cmd.Env = p.spec.Env
	cmd.Dir = p.spec.Dir
	cmd.Stdout = p.stdout
	cmd.Stderr = p.stderr
	cmd.SysProcAttr = childAttributes()
	// A grandchild that keeps the pipe open must not keep us waiting for the end of it.
	cmd.WaitDelay = time.Second
	if err := p.spawner.start(cmd); err != nil {
		return fmt.Errorf("could not start %s: %w", p.spec.Path, notStarted(err))
	}
	pid := cmd.Process.Pid
	p.orphans.add(pid)
	p.started(pid)
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()

	err := func() error {
		select {
		case err := <-gone:
			return err
		case <-ctx.Done():
		}
		signalGroup(pid, syscall.SIGTERM)
		timer := time.NewTimer(p.spec.Grace)
		defer timer.Stop()
		select {
		case err := <-gone:
			return err
		case <-timer.C:
		case <-kill.Done():
		}
		signalGroup(pid, syscall.SIGKILL)
		return <-gone
	}()
	// Whatever the program left behind in its group goes with it.
	signalGroup(pid, syscall.SIGKILL)
	p.orphans.remove(pid)
	p.stdout.flush()
	p.stderr.flush()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return err
}

// notStarted says what to do about an error of execve(2) or fork(2), where the kernel's word leaves that to guess.
func notStarted(err error) error {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("%w: it is no program for this machine, and no script, which begins with a line such as #!/bin/sh", syscall.ENOEXEC)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w: allow malha more of them (ulimit -n)", err)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%w: there are as many processes as this user may have (ulimit -u)", err)
	}
	return err
}

// signalGroup signals the process group that pid leads; a group that has gone is no error.
func signalGroup(pid int, sig syscall.Signal) {
	_ = syscall.Kill(-pid, sig)
}
