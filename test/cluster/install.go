package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// programs are what the cluster needs from the system, and the Debian packages that have them.
var programs = [][2]string{
	{"containerd", "containerd"}, {"runc", "runc"}, {"/usr/lib/cni/bridge", "containernetworking-plugins"}, {"iptables", "iptables"},
	{"nft", "nftables"}, {"conntrack", "conntrack"}, {"socat", "socat"}, {"ip", "iproute2"}, {"nsenter", "util-linux"},
}

// Install installs the Debian packages that are missing.
func Install(ctx context.Context) error {
	var missing []string
	for _, p := range programs {
		if _, err := exec.LookPath(p[0]); err != nil {
			missing = append(missing, p[1])
		}
	}
	return InstallPackages(ctx, missing...)
}

// InstallPackages installs Debian packages without starting the services that they bring.
func InstallPackages(ctx context.Context, missing ...string) error {
	if len(missing) == 0 {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return fmt.Errorf("install the packages %s", strings.Join(missing, ", "))
	}
	// Their services must not start: the cluster runs its own.
	const policy = "/usr/sbin/policy-rc.d"
	if _, err := os.Stat(policy); os.IsNotExist(err) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer func() { _ = os.Remove(policy) }()
	}
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}
