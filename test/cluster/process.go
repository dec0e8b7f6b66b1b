package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// start runs a program of the cluster in a network namespace, unless it runs already. It outlives the caller; its output is in
// log/NAME.log, its process id in the run folder.
func (c *Cluster) start(name, netns, program string, args ...string) error {
	if c.alive(name) {
		return nil
	}
	log, err := os.OpenFile(c.path("log", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	// nsenter, not "ip netns exec": that one mounts /sys anew, which hides the control groups from kubelet. It becomes the
	// program, so the process id is the program's.
	cmd := exec.Command("nsenter", append([]string{"--net=" + netnsPath(netns), "--", program}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	go func() { _ = cmd.Wait() }() // while we live, no zombie is left
	if err := os.WriteFile(c.pidFile(name), fmt.Appendf(nil, "%d %s\n", pid, startTime(pid)), 0o600); err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return err
	}
	return nil
}

func (c *Cluster) pidFile(name string) string { return filepath.Join(c.run, name+".pid") }

// startTime is when a process began, in ticks since boot: with it, an id that the kernel gave to another process is told.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if f[0] == "Z" {
		return ""
	}
	return f[19]
}

// process returns the id of a program that runs, else 0.
func (c *Cluster) process(name string) int {
	b, err := os.ReadFile(c.pidFile(name))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil || startTime(pid) != f[1] {
		return 0
	}
	return pid
}

func (c *Cluster) alive(name string) bool { return c.process(name) != 0 }

// stop ends a program: it has ten seconds to leave by itself.
func (c *Cluster) stop(name string) error {
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		pid := c.process(name)
		if pid == 0 {
			break
		}
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		err := poll(context.Background(), 10*time.Second, func() error {
			if c.alive(name) {
				return fmt.Errorf("%s is still there", name)
			}
			return nil
		})
		if err != nil && i == 1 {
			return err
		}
	}
	if err := os.Remove(c.pidFile(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// run runs a command and returns its output in the error when it fails.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
