package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/malha-mesh/malha/test/cluster"
)

// own is the cluster of these tests, beside the one of make cluster-up. MALHA_E2E_CLUSTER is another name, for a second one beside.
var own = cluster.Options{Name: cmp.Or(os.Getenv("MALHA_E2E_CLUSTER"), "e2e"), Nodes: 2, Index: 1}

func TestMain(m *testing.M) {
	code := m.Run()
	cleanBed()
	if os.Getenv("MALHA_E2E") != "" && os.Getenv("MALHA_E2E_KEEP") == "" {
		if err := cluster.Down(context.Background(), own); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// begin brings up the cluster.
func begin(t *testing.T) *cluster.Cluster {
	t.Helper()
	if os.Getenv("MALHA_E2E") == "" {
		t.Skip("set MALHA_E2E=1 to run this on a Kubernetes that is brought up for it, or on that of KUBECONFIG: make e2e")
	}
	if err := cluster.Possible(); err != nil {
		t.Skip(err)
	}
	o := own
	o.Log = t.Output()
	c, err := cluster.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually wants f to return nil at last: also on a machine that does much else beside.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	if err := poll(t.Context(), 3*time.Minute, f); err != nil {
		t.Error(err)
	}
}

// poll calls f until it returns nil, or the time is over: then its last error is returned.
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
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func kubectl(t *testing.T, c *cluster.Cluster, stdin string, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
