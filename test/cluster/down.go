package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Down ends every process of the cluster and removes all that it made but the built programs. What is gone already is no
// error.
func Down(ctx context.Context, o Options) error {
	c := Open(o)
	if c.External {
		return nil
	}
	var errs []error
	for i := range maxNodes {
		n := c.node(i + 1)
		errs = append(errs, c.stop(n.name+"-kubelet"), c.stop(n.name+"-kube-proxy"))
		if c.alive(n.name + "-containerd") {
			c.removeContainers(ctx, n)
		}
		errs = append(errs, c.stop(n.name+"-containerd"))
	}
	for _, name := range []string{"loadbalancer", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"} {
		errs = append(errs, c.stop(name))
	}
	errs = append(errs, c.killRest(), c.removeNetwork(ctx), c.removeGroups())
	if err := c.unmount(); err != nil {
		return errors.Join(append(errs, err)...) // what is mounted is somebody's: it is not removed with the folders
	}
	errs = append(errs, os.RemoveAll(c.run), os.RemoveAll(c.dir))
	for _, parent := range []string{runDir, dataDir} {
		_ = os.Remove(parent) // unless another cluster is in it
	}
	return errors.Join(errs...)
}

// removeContainers ends all containers of a node through containerd. One that ends meanwhile by itself is no error, and one
// that stays is ended by killRest.
func (c *Cluster) removeContainers(ctx context.Context, n node) {
	ctr := []string{"--address", c.socket(n), "--namespace", "k8s.io"}
	for _, kind := range []struct {
		name   string
		remove []string
	}{{"tasks", []string{"tasks", "rm", "--force"}}, {"containers", []string{"containers", "rm"}}} {
		out, err := output(ctx, "ctr", append(ctr, kind.name, "ls", "-q")...)
		if ids := strings.Fields(out); err == nil && len(ids) > 0 {
			_ = run(ctx, "ctr", append(append(ctr, kind.remove...), ids...)...)
		}
	}
}

// killRest kills what is left in the cluster's control groups and network namespaces: containers, and the shims of a
// containerd that was killed. Whoever is there was started by this cluster, or by a command that ran inside.
func (c *Cluster) killRest() error {
	return poll(context.Background(), time.Minute, func() error {
		pids := c.inside()
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
		if len(pids) > 0 {
			return fmt.Errorf("processes %v are still there", pids)
		}
		return nil
	})
}

// inside lists the processes in the cluster's control groups and network namespaces.
func (c *Cluster) inside() []int {
	ours := map[string]bool{}
	for _, name := range c.namespaces() {
		var st syscall.Stat_t
		if syscall.Stat(netnsPath(name), &st) == nil {
			ours[fmt.Sprintf("net:[%d]", st.Ino)] = true
		}
	}
	var pids []int
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, p := range processes {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil || pid == os.Getpid() || startTime(pid) == "" {
			continue
		}
		net, _ := os.Readlink(p + "/ns/net")
		groups, _ := os.ReadFile(p + "/cgroup")
		if ours[net] || strings.Contains(string(groups), ":"+c.group("")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// group is the control group of a node; of all nodes, the beginning.
func (c *Cluster) group(node string) string {
	if node == "" {
		node = "node-"
	}
	return "/malha-" + c.options.Name + "-" + node
}

// unmount unmounts whatever is mounted below the cluster's folders, the last mounted first.
func (c *Cluster) unmount() error {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	var errs []error
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) > 1 && (strings.HasPrefix(f[1], c.dir+"/") || strings.HasPrefix(f[1], c.run+"/")) {
			errs = append(errs, run(context.Background(), "umount", "--lazy", f[1]))
		}
	}
	return errors.Join(errs...)
}

// removeGroups removes the empty control groups, innermost first.
func (c *Cluster) removeGroups() error {
	// Version 1 has the group in each hierarchy, version 2 in the only one.
	groups, err := filepath.Glob("/sys/fs/cgroup" + c.group("") + "*")
	if err != nil {
		return err
	}
	more, err := filepath.Glob("/sys/fs/cgroup/*" + c.group("") + "*")
	if err != nil {
		return err
	}
	var all []string
	for _, g := range append(groups, more...) {
		err := filepath.WalkDir(g, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	var errs []error
	for _, g := range slices.Backward(all) {
		// A group lets go of a process a moment after its end.
		errs = append(errs, poll(context.Background(), time.Minute, func() error {
			if err := syscall.Rmdir(g); err != nil && !errors.Is(err, syscall.ENOENT) {
				return fmt.Errorf("control group %s: %w", g, err)
			}
			return nil
		}))
	}
	return errors.Join(errs...)
}
