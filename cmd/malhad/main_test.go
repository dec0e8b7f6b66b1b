package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/testport"
	"github.com/malha-mesh/malha/internal/wire/watch"
)

const manifests = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 80}], address: 127.0.0.1}
`

const broken = `
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{route: [{destination: {host: wep}}]}]}
`

// output is a buffer that a test may read while the program writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func write(t *testing.T, dir, text string) {
	t.Helper()
	// As editors do: a file that is written in place is empty for a moment, which on a busy machine is long enough to count.
	file := filepath.Join(dir, "mesh.yaml")
	if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o600), os.Rename(file+".new", file)); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func TestServesAFolder(t *testing.T) {
	for _, domain := range []string{"cluster.local", "corp.example"} {
		t.Run(domain, func(t *testing.T) { servesAFolder(t, domain) })
	}
}

// servesAFolder is of a mesh with a trust domain, of which its proxies prove to be.
func servesAFolder(t *testing.T, domain string) {
	dir, state, addr := t.TempDir(), filepath.Join(t.TempDir(), "state"), testport.Address(t)
	write(t, dir, manifests)
	ctx, cancel := context.WithCancel(context.Background())
	var stderr output
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"--config", dir, "--state", state, "--listen", addr, "--trust-domain", domain}, &stderr, &stderr)
	}()
	defer func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("exit code %d after an end in order:\n%s", code, &stderr)
		}
	}()
	token := filepath.Join(state, "tokens", "default", "web")
	eventually(t, "the token", func() bool { _, err := os.Stat(token); return err == nil })
	for _, secret := range []string{token, filepath.Join(state, "ca", "root-key.pem")} {
		if info, err := os.Stat(secret); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, mode %v, want 0600", secret, err, info.Mode())
		}
	}
	plans := make(chan *plan.Plan, 16)
	w := watch.New(watch.Options{
		Addr: addr, Node: ident.Name{Namespace: "default", Name: "web"}, Role: plan.Sidecar, TrustDomain: domain,
		RootsFile: filepath.Join(state, "ca", "root.pem"), TokenFile: token,
		Apply: func(p *plan.Plan) error { plans <- p; return nil },
	})
	watched := make(chan error, 1)
	wctx, stop := context.WithCancel(context.Background())
	go func() { watched <- w.Run(wctx) }()
	defer func() { stop(); <-watched }()

	first := next(t, plans)
	if got := first.Node.Identity.TrustDomain; got != domain {
		t.Errorf("the proxy is of trust domain %s, want %s", got, domain)
	}
	if len(first.Listeners) != 3 {
		t.Errorf("%d listeners, want forward, inbound and one local", len(first.Listeners))
	}
	write(t, dir, manifests+broken)
	for _, says := range []string{"MALHA0801", "did you mean web?", "keeps serving"} { // what, what to do, and what is in force
		eventually(t, says, func() bool { return strings.Contains(stderr.String(), says) })
	}
	write(t, dir, manifests+strings.ReplaceAll(broken, "wep", "web"))
	if second := next(t, plans); second.Node.Name != first.Node.Name {
		t.Errorf("a plan for %s", second.Node.Name)
	}
}

func next(t *testing.T, plans <-chan *plan.Plan) *plan.Plan {
	t.Helper()
	select {
	case p := <-plans:
		return p
	case <-time.After(time.Minute):
		t.Fatal("no plan came")
		return nil
	}
}

func TestExitCodes(t *testing.T) {
	good, bad := t.TempDir(), t.TempDir()
	write(t, good, manifests)
	write(t, bad, manifests+broken)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		name string
		args []string
		code int
		say  string
	}{
		{"help", []string{"--help"}, 0, "Kubernetes"},
		{"version", []string{"--version"}, 0, "malhad"},
		{"no folder named", nil, 2, "--config"},
		{"unknown flag", []string{"--nope"}, 2, "nope"},
		{"an argument", []string{"--config", good, "x"}, 2, `"x"`},
		{"manifests with errors", []string{"--config", bad, "--listen", "127.0.0.1:0"}, 1, "MALHA0801"},
		{"no such folder", []string{"--config", good + "/none", "--listen", "127.0.0.1:0"}, 1, "none"},
		{"port in use", []string{"--config", good, "--listen", taken.Addr().String()}, 1, "in use"},
		{"lifetime too short", []string{"--config", good, "--cert-ttl", "1ms"}, 1, "too short"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out output
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			args := c.args
			if c.code == 1 {
				args = append(args, "--state", t.TempDir())
			}
			if code := run(ctx, args, &out, &out); code != c.code || !strings.Contains(out.String(), c.say) {
				t.Errorf("exit code %d, want %d and a word of %s:\n%s", code, c.code, c.say, &out)
			}
		})
	}
}
