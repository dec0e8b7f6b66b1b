// Package cluster brings up a real Kubernetes (etcd, API server, controller manager, scheduler, kubelet, kube-proxy,
// containerd, CoreDNS) on one Linux machine, without Docker and without touching the machine's network: every node is a
// network namespace, joined to the others by a bridge in a namespace of its own. No route leads outside; all addresses are of
// the benchmarking range 198.18.0.0/15 (RFC 2544).
//
// Up starts what is missing and returns when the nodes are Ready and DNS answers. The processes outlive the caller: Down, also
// of another process, ends them by what Up left in Dir. With KUBECONFIG in the environment Up starts nothing and uses that
// cluster.
//
// Only root can do this. What it needs from Debian, Install installs.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Version is the Kubernetes that is built and run.
const Version = "v1.34.4"

// Options say which cluster.
type Options struct {
	Name  string    // "malha" when empty
	Nodes int       // at least so many; more than there are join
	Index int       // 0 to 3: clusters with different indexes have different addresses, and could be joined
	Log   io.Writer // progress; nil for none
}

// Cluster is a running cluster.
type Cluster struct {
	// Kubeconfig is the path of an administrator's kubeconfig. Its server is reached from inside the cluster's network: see
	// Command.
	Kubeconfig string
	// External is set for a cluster that was there already (KUBECONFIG).
	External bool

	options Options
	dir     string // data
	run     string // sockets, process ids
	bin     string // programs
}

const (
	dataDir = "/var/lib/malha-cluster"
	runDir  = "/run/malha-cluster"
)

// Open returns the cluster that Up made, without looking whether it runs.
func Open(o Options) *Cluster {
	if o.Name == "" {
		o.Name = "malha"
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if k := os.Getenv("KUBECONFIG"); k != "" {
		return &Cluster{Kubeconfig: k, External: true, options: o}
	}
	c := &Cluster{options: o, dir: filepath.Join(dataDir, o.Name), run: filepath.Join(runDir, o.Name)}
	c.Kubeconfig, c.bin = c.path("admin.kubeconfig"), c.path("bin")
	return c
}

// Up starts the cluster, or what is missing of it.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	c := Open(o)
	if c.External {
		if _, err := c.Kubectl(ctx, "", "get", "--raw", "/readyz"); err != nil {
			return nil, fmt.Errorf("the cluster of KUBECONFIG=%s does not answer: %w", c.Kubeconfig, err)
		}
		return c, nil
	}
	if err := Possible(); err != nil {
		return nil, err
	}
	if !regexp.MustCompile(`^[a-z0-9]{1,20}$`).MatchString(c.options.Name) {
		return nil, fmt.Errorf("the name %q: use up to 20 small letters and digits, since files, groups and namespaces get it", c.options.Name)
	}
	c.options.Nodes = c.size()
	if c.options.Nodes > maxNodes {
		return nil, fmt.Errorf("%d nodes; at most %d", c.options.Nodes, maxNodes)
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"packages", Install},
		{"programs (about four minutes the first time)", c.build},
		{"keys", c.keys},
		{"network", c.network},
		{"control plane", c.controlPlane},
		{"nodes", c.nodes},
		{"name server", c.dns},
	}
	begun := time.Now()
	for i, s := range steps {
		at := time.Now()
		_, _ = fmt.Fprintf(c.options.Log, "[%d/%d] %s\n", i+1, len(steps), s.name)
		if err := s.do(ctx); err != nil {
			return nil, fmt.Errorf("cluster %s: %s: %w\nthe logs are in %s", c.options.Name, s.name, err, filepath.Join(c.dir, "log"))
		}
		_, _ = fmt.Fprintf(c.options.Log, "      %.1fs\n", time.Since(at).Seconds())
	}
	_, _ = fmt.Fprintf(c.options.Log, "cluster %s is up after %.0fs\n", c.options.Name, time.Since(begun).Seconds())
	return c, nil
}

// size is how many nodes there are, or shall be.
func (c *Cluster) size() int {
	size := max(c.options.Nodes, 1)
	for i := range maxNodes {
		if exists(c.nodePath(c.node(i + 1))) {
			size = max(size, i+1)
		}
	}
	return size
}

// Running says whether the cluster's API server runs.
func (c *Cluster) Running() bool { return c.External || c.alive("kube-apiserver") }

// Stop ends one program of the cluster: "kube-apiserver", "node-1-kubelet" and so on, the names of the files in the log
// folder. Up starts it again.
func (c *Cluster) Stop(program string) error {
	if c.External {
		return errors.New("a cluster that was not made here is not touched")
	}
	if !c.alive(program) {
		return fmt.Errorf("%s does not run", program)
	}
	return c.stop(program)
}

// Programs are the names of the programs of the cluster that run.
func (c *Cluster) Programs() []string {
	files, _ := filepath.Glob(filepath.Join(c.run, "*.pid")) // the pattern is well-formed
	var running []string
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".pid"); c.alive(name) {
			running = append(running, name)
		}
	}
	return running
}

// Dir is where a cluster keeps its data; what a test puts there goes with Down.
func (c *Cluster) Dir() string { return c.dir }

// Command returns a command that runs in the network of the cluster's first node, with KUBECONFIG set.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if c.External {
		return exec.CommandContext(ctx, name, args...)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + netnsPath(c.node(1).netns), "--", name}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "PATH="+c.bin+":"+os.Getenv("PATH"))
	return cmd
}

// Kubectl runs kubectl and returns what it prints.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	name := "kubectl"
	if !c.External {
		name = filepath.Join(c.bin, "kubectl")
	}
	cmd := c.Command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// poll calls f every 100 ms until it returns nil, or the time is over: then its last error is returned.
func poll(ctx context.Context, patience time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", patience, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
