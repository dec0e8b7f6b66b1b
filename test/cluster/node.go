package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// maxNodes is how many nodes have addresses.
const maxNodes = 9

func (c *Cluster) nodePath(n node, parts ...string) string {
	return c.path(append([]string{n.name}, parts...)...)
}

func (c *Cluster) socket(n node) string { return filepath.Join(c.run, n.name, "containerd.sock") }

// nodes starts containerd, kubelet and kube-proxy for each node and waits until all are Ready.
func (c *Cluster) nodes(ctx context.Context) error {
	var since time.Time // what a node said before is of a kubelet that is gone
	for i := range c.options.Nodes {
		if !c.alive(c.node(i+1).name + "-kubelet") {
			since = time.Now().Truncate(time.Second) // as exact as the API is
		}
	}
	for i := range c.options.Nodes {
		if err := c.startNode(ctx, c.node(i+1)); err != nil {
			return fmt.Errorf("%s: %w", c.node(i+1).name, err)
		}
	}
	return poll(ctx, 5*time.Minute, func() error {
		out, err := c.Kubectl(ctx, "", "get", "nodes", "-o", "json")
		if err != nil {
			return err
		}
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Status   struct {
					Conditions []struct {
						Type, Status, Message string
						LastHeartbeatTime     time.Time
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		if len(list.Items) < c.options.Nodes {
			return fmt.Errorf("%d of %d nodes have joined", len(list.Items), c.options.Nodes)
		}
		for _, n := range list.Items {
			ready := false
			for _, cond := range n.Status.Conditions {
				if cond.Type == "Ready" {
					if cond.Status != "True" {
						return fmt.Errorf("%s is not ready: %s", n.Metadata.Name, cond.Message)
					}
					ready = !cond.LastHeartbeatTime.Before(since)
				}
			}
			if !ready {
				return fmt.Errorf("%s has not said yet how it is", n.Metadata.Name)
			}
		}
		return nil
	})
}

func (c *Cluster) startNode(ctx context.Context, n node) error {
	for _, d := range []string{c.nodePath(n, "cni"), c.nodePath(n, "kubelet"), filepath.Join(c.run, n.name)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// Control groups of its own, so that nodes do not count each other's pods.
	group := c.group(n.name)
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return err
	}
	if exists("/sys/fs/cgroup/cgroup.controllers") {
		hierarchies = []string{"/sys/fs/cgroup"}
	}
	for _, h := range hierarchies {
		if err := os.MkdirAll(h+group, 0o755); err != nil {
			return err
		}
	}
	if exists("/sys/fs/cgroup/cpuset") { // version 1: a new group has no processors until it is told
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile("/sys/fs/cgroup/cpuset/" + f)
			if err != nil {
				return err
			}
			if err := os.WriteFile("/sys/fs/cgroup/cpuset"+group+"/"+f, b, 0o644); err != nil {
				return err
			}
		}
	}
	files := map[string]string{
		c.nodePath(n, "containerd.toml"):         fmt.Sprintf(containerdConfig, c.nodePath(n, "containerd"), filepath.Join(c.run, n.name, "containerd"), c.socket(n), pauseImage, c.nodePath(n, "cni")),
		c.nodePath(n, "cni", "10-pods.conflist"): fmt.Sprintf(cniConfig, c.podNet(n.number)),
		c.nodePath(n, "resolv.conf"):             "# there is no outside\n",
		c.nodePath(n, "kubelet.yaml"): fmt.Sprintf(kubeletConfig, c.path("pki", "ca.crt"), c.socket(n), c.serviceAddress(10), group,
			c.nodePath(n, "resolv.conf"), c.nodePath(n, "logs")),
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := c.start(n.name+"-containerd", n.netns, "containerd", "--config", c.nodePath(n, "containerd.toml")); err != nil {
		return err
	}
	if err := poll(ctx, 2*time.Minute, func() error {
		return run(ctx, "ctr", "--address", c.socket(n), "version")
	}); err != nil {
		return err
	}
	pause := Image{Name: pauseImage, Files: map[string]string{"/pause": filepath.Join(c.bin, "pause")}, Entrypoint: []string{"/pause"}}
	if err := pause.archive(func(path string) error { return c.importInto(ctx, n, path) }); err != nil {
		return err
	}
	if err := c.start(n.name+"-kubelet", n.netns, filepath.Join(c.bin, "kubelet"), "--config="+c.nodePath(n, "kubelet.yaml"),
		"--kubeconfig="+c.kubeconfig("system:node:"+n.name), "--root-dir="+c.nodePath(n, "kubelet"), "--hostname-override="+n.name, "--node-ip="+n.address,
		fmt.Sprintf("--node-labels=topology.kubernetes.io/region=r1,topology.kubernetes.io/zone=r1-z%d", n.number)); err != nil {
		return err
	}
	return c.start(n.name+"-kube-proxy", n.netns, filepath.Join(c.bin, "kube-proxy"), "--kubeconfig="+c.kubeconfig("system:kube-proxy"), "--hostname-override="+n.name,
		"--proxy-mode=nftables", "--cluster-cidr=198.18.0.0/17", "--oom-score-adj=0",
		// These can't be written in a namespace.
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")
}

// The limits that a small machine without the right to lower an OOM score sets: see each key.
const containerdConfig = `version = 2
root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
`

// Every pod has a link of its own to the node, which routes: traffic of one pod for another of the same node passes kube-proxy's
// rules both ways, without bridge netfilter.
const cniConfig = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %q}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: "unix://%s"
clusterDNS: [%s]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
resolvConf: %q
podLogsDir: %q
maxPods: 200
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", imagefs.available: "0%%"}
imageMinimumGCAge: 24h
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
serializeImagePulls: false
`
