package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/malha-mesh/malha/test/cluster"
)

// App is one application that has to work as it is, without the mesh and with it.
type App struct {
	Name string
	// Manifests are files, in the order in which they are applied; each is waited for.
	Manifests []string
	// Volumes are names of folders that the application finds as persistent volumes.
	Volumes []string
	// Check proves that the application does its work in a namespace, in the mesh or without one. Load balancers and rules take
	// a moment to know new pods: try again for a while.
	Check func(ctx context.Context, c *cluster.Cluster, namespace string, mesh bool, get Get) error
}

// Get fetches a URL as some client does, so many times, each on a connection of its own; an answer that is not 200 is an error.
type Get func(url string, times int) ([]string, error)

// Apps are the applications.
var Apps = []App{
	{Name: "goweb", Manifests: []string{"manifests/goweb.yaml"}, Check: checkGoweb},
	{Name: "php", Manifests: []string{"manifests/files.yaml", "manifests/php.yaml"}, Volumes: []string{"code"}, Check: checkPHP},
	{Name: "bookinfo", Manifests: []string{"../../samples/bookinfo/kubernetes/bookinfo.yaml"}, Check: checkBookinfo},
}

// Deploy applies an application in a namespace, which has to be there, and waits until all of it is available.
func (a App) Deploy(ctx context.Context, c *cluster.Cluster, namespace string) error {
	for _, volume := range a.Volumes {
		if c.External {
			break // it has a storage class of its own
		}
		path := filepath.Join(c.Dir(), "volumes", namespace, volume)
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		if _, err := c.Kubectl(ctx, fmt.Sprintf(volumeManifest, namespace+"-"+volume, volume, namespace, path), "apply", "-f", "-"); err != nil {
			return err
		}
	}
	for _, file := range a.Manifests {
		if _, err := c.Kubectl(ctx, "", "-n", namespace, "apply", "-f", file); err != nil {
			return err
		}
		if _, err := c.Kubectl(ctx, "", "-n", namespace, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=300s"); err != nil {
			pods, _ := c.Kubectl(ctx, "", "-n", namespace, "get", "pods", "-o", "wide")
			events, _ := c.Kubectl(ctx, "", "-n", namespace, "get", "events", "--field-selector=type=Warning")
			return fmt.Errorf("%w\n%s\n%s", err, pods, events)
		}
	}
	return nil
}

// Remove removes what Deploy made besides what is in the namespace, and which goes when that is gone.
func (a App) Remove(c *cluster.Cluster, namespace, wait string) {
	for _, volume := range a.Volumes {
		if !c.External {
			_, _ = c.Kubectl(context.Background(), "", "delete", "persistentvolume", namespace+"-"+volume, "--ignore-not-found", wait)
		}
	}
}

const volumeManifest = `apiVersion: v1
kind: PersistentVolume
metadata: {name: %s}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {name: %s, namespace: %s}
  hostPath: {path: %q, type: Directory}
`

// checkGoweb: every replica answers, by the Service's name and by its address from outside.
func checkGoweb(ctx context.Context, c *cluster.Cluster, namespace string, _ bool, get Get) error {
	outside, err := c.Kubectl(ctx, "", "-n", namespace, "get", "service", "go-web-service", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
	if err != nil || outside == "" {
		return errors.Join(err, fmt.Errorf("the load balancer has the address %q", outside))
	}
	cluster, err := c.Kubectl(ctx, "", "-n", namespace, "get", "service", "go-web-service", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	for _, address := range []string{outside, cluster} {
		seen := map[string]bool{}
		bodies, err := get("http://"+address+"/", 60)
		if err != nil {
			return fmt.Errorf("http://%s: %w", address, err)
		}
		for _, body := range bodies {
			name, ok := strings.CutPrefix(strings.TrimSpace(body), "Hello, Kubernetes! I am go-web-app-")
			if !ok {
				return fmt.Errorf("http://%s answered %q", address, body)
			}
			seen[name] = true
		}
		if len(seen) != 5 {
			return fmt.Errorf("60 requests for %s reached %d of 5 replicas", address, len(seen))
		}
	}
	return nil
}

// checkPHP: nginx hands requests to PHP-FPM over FastCGI, small and large answers come back whole.
func checkPHP(ctx context.Context, c *cluster.Cluster, namespace string, _ bool, get Get) error {
	address, err := c.Kubectl(ctx, "", "-n", namespace, "get", "service", "nginx", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	bodies, err := get("http://"+address+"/some/page?a=b", 20)
	if err != nil {
		return err
	}
	for _, body := range bodies {
		if !strings.HasPrefix(body, "PHP 8 on php-") || !strings.HasSuffix(body, ": GET /some/page?a=b\n") {
			return fmt.Errorf("PHP answered %q", body)
		}
	}
	const size = 3 << 20
	bodies, err = get(fmt.Sprintf("http://%s/?bytes=%d", address, size), 1)
	if err != nil {
		return err
	}
	if n := strings.Count(bodies[0], "#"); n != size {
		return fmt.Errorf("of an answer of %d bytes, %d came", size, n)
	}
	return nil
}

// checkBookinfo: the page has all its parts. In the mesh each version of reviews takes its turn; without it productpage keeps
// one connection, and with it one version.
func checkBookinfo(ctx context.Context, c *cluster.Cluster, namespace string, mesh bool, get Get) error {
	address, err := c.Kubectl(ctx, "", "-n", namespace, "get", "service", "productpage", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	pages, err := get("http://"+address+":9080/productpage", 60)
	if err != nil {
		return err
	}
	for _, body := range pages {
		for _, part := range []string{"The Comedy of Errors", "An extremely entertaining play by Shakespeare"} {
			if !strings.Contains(body, part) {
				return fmt.Errorf("the page lacks %q:\n%s", part, body)
			}
		}
		if strings.Contains(body, "currently unavailable") {
			return fmt.Errorf("the page misses ratings:\n%s", body)
		}
		for _, v := range []string{"v1", "v2", "v3"} {
			if strings.Contains(body, "reviews "+v) || strings.Contains(body, "reviews-"+v) {
				seen[v] = true
			}
		}
	}
	if len(seen) == 0 || mesh && len(seen) != 3 {
		return fmt.Errorf("60 pages had reviews of %v, and there are three versions", seen)
	}
	return nil
}
