package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// dns runs CoreDNS as a Deployment, as every cluster does, and waits until it is ready.
func (c *Cluster) dns(ctx context.Context) error {
	if err := c.Load(ctx, Image{Name: dnsImage, Files: map[string]string{"/coredns": filepath.Join(c.bin, "dns")}, Entrypoint: []string{"/coredns"}, Env: []string{"PATH=/"}}); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, fmt.Sprintf(dnsManifest, dnsImage, c.serviceAddress(10)), "apply", "-f", "-"); err != nil {
		return err
	}
	return poll(ctx, 5*time.Minute, func() error {
		_, err := c.Kubectl(ctx, "", "-n", "kube-system", "wait", "--for=condition=Available", "deployment/coredns", "--timeout=1s")
		return err
	})
}

const dnsManifest = `apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
      errors
      health :8081
      ready :8181
      kubernetes cluster.local 198.18.0.0/15 {
        ttl 5
      }
      cache 5
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      priorityClassName: system-cluster-critical
      dnsPolicy: Default
      tolerations: [{operator: Exists}]
      containers:
      - name: coredns
        image: %s
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        ports: [{containerPort: 53, protocol: UDP, name: dns}, {containerPort: 53, protocol: TCP, name: dns-tcp}]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: %s
  selector: {k8s-app: kube-dns}
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
`
