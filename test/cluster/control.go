package cluster

import (
	"context"
	"path/filepath"
	"time"
)

// controlPlane starts etcd, the API server, the controllers and the scheduler on the first node.
func (c *Cluster) controlPlane(ctx context.Context) error {
	n := c.node(1)
	pki := func(name string) string { return c.path("pki", name) }
	start := func(name string, args ...string) error {
		return c.start(name, n.netns, filepath.Join(c.bin, name), args...)
	}
	if err := start("etcd", "--name=etcd", "--data-dir="+c.path("etcd"), "--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=warn"); err != nil {
		return err
	}
	if err := start("kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443", "--advertise-address="+n.address,
		"--service-cluster-ip-range="+c.serviceNet(), "--allow-privileged=true", "--authorization-mode=Node,RBAC",
		"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"), "--client-ca-file="+pki("ca.crt"),
		"--token-auth-file="+pki("tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file="+pki("sa.crt"), "--service-account-signing-key-file="+pki("sa.key"),
		"--kubelet-client-certificate="+pki("kubelet-client.crt"), "--kubelet-client-key="+pki("kubelet-client.key"), "--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file="+pki("ca.crt"), "--requestheader-allowed-names=front-proxy", "--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+pki("front-proxy.crt"), "--proxy-client-key-file="+pki("front-proxy.key"),
	); err != nil {
		return err
	}
	if err := poll(ctx, 5*time.Minute, func() error {
		_, err := c.Kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return err
	}
	if err := start("kube-controller-manager", "--kubeconfig="+c.kubeconfig("system:kube-controller-manager"), "--use-service-account-credentials",
		"--service-account-private-key-file="+pki("sa.key"), "--root-ca-file="+pki("ca.crt"), "--cluster-signing-cert-file="+pki("ca.crt"),
		"--cluster-signing-key-file="+pki("ca.key"), "--leader-elect=false", "--bind-address=127.0.0.1",
		// A node that says nothing for a while is busy, or the API server was stopped by a test: its pods stay ready. Endpoints are
		// written without waiting for others.
		"--node-monitor-grace-period=10m", "--endpointslice-updates-batch-period=0s"); err != nil {
		return err
	}
	if err := start("kube-scheduler", "--kubeconfig="+c.kubeconfig("system:kube-scheduler"), "--leader-elect=false", "--bind-address=127.0.0.1"); err != nil {
		return err
	}
	return start("loadbalancer", "--kubeconfig="+c.Kubeconfig, "--addresses="+c.LoadBalancers())
}
