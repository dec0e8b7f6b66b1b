package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// The addresses of a cluster, all of 198.18.0.0/15. Index keeps those of several clusters apart.
//
//	198.18.(64·Index/4 + node).0/24  pods of a node
//	198.19.(64·Index).0/18           services; .10 is the name server
//	198.18.254.(64·Index)/26         load balancers
//	198.18.255.(64·Index + node)     nodes

func (c *Cluster) podNet(node int) string {
	return fmt.Sprintf("198.18.%d.0/24", 16*c.options.Index+node)
}

func (c *Cluster) serviceAddress(n int) string {
	return fmt.Sprintf("198.19.%d.%d", 64*c.options.Index, n)
}

func (c *Cluster) serviceNet() string { return c.serviceAddress(0) + "/18" }

// LoadBalancers is the range of addresses that Services of type LoadBalancer get.
func (c *Cluster) LoadBalancers() string { return fmt.Sprintf("198.18.254.%d/26", 64*c.options.Index) }

// node is one node: a network namespace with a kubelet.
type node struct {
	number               int
	name, netns, address string
}

func (c *Cluster) node(number int) node {
	return node{
		number: number, name: fmt.Sprintf("node-%d", number), netns: fmt.Sprintf("malha-%s-%d", c.options.Name, number),
		address: fmt.Sprintf("198.18.255.%d", 64*c.options.Index+number),
	}
}

func (c *Cluster) bridgeNetns() string { return "malha-" + c.options.Name + "-bridge" }

func netnsPath(name string) string { return "/run/netns/" + name }

// network makes the namespaces: the bridge's, and one for each node with a leg on the bridge. Routes lead to the pods of the
// other nodes; services and load balancers are on the leg too, for kube-proxy to rewrite. There is no default route.
func (c *Cluster) network(ctx context.Context) error {
	if err := os.MkdirAll(c.run, 0o700); err != nil {
		return err
	}
	in := func(netns string, args ...string) error {
		return run(ctx, "nsenter", append([]string{"--net=" + netnsPath(netns), "--"}, args...)...)
	}
	bridge := c.bridgeNetns()
	if !exists(netnsPath(bridge)) {
		if err := first(
			func() error { return run(ctx, "ip", "netns", "add", bridge) },
			func() error { return in(bridge, "ip", "link", "set", "lo", "up") },
			func() error { return in(bridge, "ip", "link", "add", "br0", "type", "bridge") },
			func() error { return in(bridge, "ip", "link", "set", "br0", "up") },
		); err != nil {
			return err
		}
	}
	for i := range c.options.Nodes {
		n := c.node(i + 1)
		if exists(netnsPath(n.netns)) {
			continue
		}
		port := fmt.Sprintf("node%d", n.number)
		steps := []func() error{
			func() error { return run(ctx, "ip", "netns", "add", n.netns) },
			func() error { return in(n.netns, "ip", "link", "set", "lo", "up") },
			func() error {
				return in(n.netns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", bridge)
			},
			func() error { return in(bridge, "ip", "link", "set", port, "master", "br0", "up") },
			func() error { return in(n.netns, "ip", "address", "add", n.address+"/24", "dev", "eth0") },
			func() error { return in(n.netns, "ip", "link", "set", "eth0", "up") },
			func() error { return in(n.netns, "ip", "route", "add", c.serviceNet(), "dev", "eth0") },
			func() error { return in(n.netns, "ip", "route", "add", c.LoadBalancers(), "dev", "eth0") },
			func() error { return in(n.netns, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1") },
			func() error { return in(n.netns, "sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=1") },
		}
		for j := range maxNodes { // also those that join later
			if other := c.node(j + 1); other.number != n.number {
				steps = append(steps, func() error {
					return in(n.netns, "ip", "route", "add", c.podNet(other.number), "via", other.address)
				})
			}
		}
		if err := first(steps...); err != nil {
			return err
		}
	}
	return nil
}

// namespaces are the names of the network namespaces that the cluster has, or could have.
func (c *Cluster) namespaces() []string {
	names := []string{c.bridgeNetns()}
	for i := range maxNodes {
		names = append(names, c.node(i+1).netns)
	}
	return names
}

// removeNetwork removes the namespaces, and with them what is in them.
func (c *Cluster) removeNetwork(ctx context.Context) error {
	for _, name := range c.namespaces() {
		if exists(netnsPath(name)) {
			if err := exec.CommandContext(ctx, "ip", "netns", "delete", name).Run(); err != nil {
				return fmt.Errorf("network namespace %s: %w", name, err)
			}
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// first calls functions in order up to the first error.
func first(steps ...func() error) error {
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}
