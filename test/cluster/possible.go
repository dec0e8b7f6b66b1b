package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Possible is nil where a cluster can be brought up, or need not be because KUBECONFIG names one. Else it says what this machine
// does not permit.
func Possible() error {
	if os.Getenv("KUBECONFIG") != "" {
		return nil
	}
	const other = "; or set KUBECONFIG to use a cluster that runs"
	if os.Geteuid() != 0 {
		return errors.New("bringing up a Kubernetes takes root, for network namespaces and containers" + other)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		if _, err := exec.LookPath("containerd"); err != nil {
			return errors.New("bringing up a Kubernetes takes containerd, which is not here, and neither is apt-get to install it" + other)
		}
	}
	try := []string{"true"}
	if _, err := exec.LookPath("ip"); err == nil { // else Install brings it
		try = []string{"sh", "-c", "ip link add left type veth peer name right && ip link add bridge type bridge"}
	}
	if out, err := exec.Command("unshare", append([]string{"--net", "--mount", "--"}, try...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("bringing up a Kubernetes takes namespaces with links of their own, which this machine does not permit: %w: %s%s", err, strings.TrimSpace(string(out)), other)
	}
	group := "/sys/fs/cgroup/malha-possible"
	if !exists("/sys/fs/cgroup/cgroup.controllers") { // version 1: in each hierarchy
		group = "/sys/fs/cgroup/cpu/malha-possible"
	}
	if err := first(func() error { return os.MkdirAll(group, 0o755) }, func() error { return os.Remove(group) }); err != nil {
		return fmt.Errorf("bringing up a Kubernetes takes control groups below %s, which this machine does not permit: %w%s", filepath.Dir(group), err, other)
	}
	return nil
}
