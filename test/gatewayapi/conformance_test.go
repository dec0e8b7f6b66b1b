package gatewayapi

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"

	"github.com/malha-mesh/malha/test/cluster"
)

// page is this package's only flag; the others are the suite's (-run-test, -version, -report-output, -debug and so on).
var page = flag.String("page", "", "write the table of results into this `file`, an absolute path; with -report-output")

// own is the cluster of this test, beside the ones of make cluster-up and make e2e.
var own = cluster.Options{Name: "conformance", Nodes: 2, Index: 2}

const (
	infrastructure = "gateway-conformance-infra"
	webBackend     = "gateway-conformance-web-backend"
	// inside is set in the process that runs the suite.
	inside = "MALHA_GATEWAYAPI_SUITE"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv("MALHA_GATEWAYAPI") != "" && os.Getenv(inside) == "" && os.Getenv("MALHA_GATEWAYAPI_KEEP") == "" {
		if err := cluster.Down(context.Background(), own); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// TestConformance brings up a cluster with the Gateway API and the mesh, and runs the suite in its network: TestSuite, in a process of its own.
func TestConformance(t *testing.T) {
	if os.Getenv("MALHA_GATEWAYAPI") == "" {
		t.Skip("set MALHA_GATEWAYAPI=1 to run this on a Kubernetes that is brought up for it: make gateway-conformance")
	}
	o := own
	o.Log = t.Output()
	c, err := cluster.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if c.External {
		t.Skip("KUBECONFIG is set: the suite's images are put on nodes of a cluster that is made for it")
	}
	install(t, c)
	args := []string{"-test.run=^TestSuite$", "-test.v", "-test.timeout=40m", "-test.parallel=4"}
	flag.Visit(func(f *flag.Flag) {
		if !strings.HasPrefix(f.Name, "test.") && f.Name != "page" {
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	cmd := c.Command(t.Context(), os.Args[0], args...)
	cmd.Env = append(cmd.Env, inside+"="+c.LoadBalancers())
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Run(); err != nil {
		t.Errorf("the suite: %v", err)
	}
	if report := flag.Lookup("report-output").Value.String(); *page != "" && report != "" {
		if err := tabulate(report, *page); err != nil {
			t.Error(err)
		}
	}
}

// install puts the kinds, the images and the mesh into the cluster.
func install(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "", "apply", "--server-side", "--force-conflicts", "-k", filepath.Join(strings.TrimSpace(string(module)), "config/crd/experimental"))
	kubectl(t, c, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=300s")

	dir := t.TempDir()
	images, err := Images(t.Context(), c, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Load(t.Context(), images...); err != nil {
		t.Fatal(err)
	}
	// The mesh as users build and install it. Nodes and Deployments know images by their names: on a cluster that was kept, those of
	// this run must be new.
	version := "VERSION=v0.0.0-conformance." + strconv.FormatInt(time.Now().Unix(), 10)
	build := exec.CommandContext(t.Context(), "make", "--no-print-directory", "-C", "../..", "images", "BIN="+dir, version)
	build.Env = append(os.Environ(), "GOWORK=off", "MAKEFLAGS=", "MFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make images: %v\n%s", err, out)
	}
	for _, name := range []string{"malhad", "malha-proxy"} {
		if err := c.LoadArchive(t.Context(), filepath.Join(dir, "images", name+".tar")); err != nil {
			t.Fatal(err)
		}
	}
	for _, namespace := range []string{infrastructure, webBackend} { // whose certificates gateways name
		kubectl(t, c, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+namespace+"}\n", "apply", "-f", "-")
	}
	malha := c.Command(t.Context(), filepath.Join(dir, "malha"), "install", "--profile=minimal", "--timeout=5m", "--set=secretNamespaces={"+infrastructure+","+webBackend+"}")
	out, err := malha.CombinedOutput()
	if err != nil {
		t.Fatalf("malha install: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	kubectl(t, c, "", "wait", "--for=condition=Accepted", "gatewayclass/malha", "--timeout=300s")
}

func kubectl(t *testing.T, c *cluster.Cluster, stdin string, args ...string) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), stdin, args...); err != nil {
		t.Fatal(err)
	}
}

// TestSuite is the suite as it is, with exactly what the mesh claims: the features in the status of its GatewayClass.
func TestSuite(t *testing.T) {
	balancers := os.Getenv(inside)
	if balancers == "" {
		t.Skip("TestConformance runs this in the cluster's network")
	}
	o := conformance.DefaultOptions(t)
	o.GatewayClassName = "malha"
	o.ConformanceProfiles = []suite.ConformanceProfileName{
		suite.GatewayHTTPConformanceProfileName, suite.GatewayGRPCConformanceProfileName, suite.GatewayTLSConformanceProfileName, suite.GatewayTCPConformanceProfileName,
		suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName,
	}
	const url = "https://github.com/malha-mesh/malha"
	o.Implementation = confv1.Implementation{
		Organization: "malha-mesh", Project: "malha", URL: url, Version: cmp.Or(o.Implementation.Version, "dev"), Contact: []string{url + "/issues"},
	}
	o.ManifestFS = []fs.FS{meshed(t)}
	var class gateway.GatewayClass
	if err := o.Client.Get(t.Context(), client.ObjectKey{Name: o.GatewayClassName}, &class); err != nil {
		t.Fatal(err)
	}
	for _, f := range class.Status.SupportedFeatures {
		o.SupportedFeatures = append(o.SupportedFeatures, features.FeatureName(f.Name))
	}
	o.Hook = func(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
		result := "passed"
		switch {
		case t.Failed():
			result = "FAILED"
		case t.Skipped():
			result = "skipped"
		}
		fmt.Printf("%s: %s\n", result, test.ShortName) // others are told when all is over
	}
	within, err := netip.ParsePrefix(balancers)
	if err != nil {
		t.Fatal(err)
	}
	kind := gateway.IPAddressType
	last := within.Masked().Addr()
	for a := last; within.Contains(a.Next().Next()); a = a.Next() {
		last = a
	}
	o.UsableNetworkAddresses = []gateway.GatewaySpecAddress{{Type: &kind, Value: last.String()}}
	o.UnusableNetworkAddresses = []gateway.GatewaySpecAddress{{Type: &kind, Value: "198.51.100.1"}} // TEST-NET-2 (RFC 5737), not of the load balancers
	o.CleanupBaseResources = os.Getenv("MALHA_GATEWAYAPI_KEEP") == ""
	conformance.RunConformanceWithOptions(t, o)
}

// meshed are the suite's manifests with the label that puts the namespaces of the mesh's tests into the mesh. The suite can label
// namespaces too, but only all of them, and the backends of its gateways shall be outside.
func meshed(t *testing.T) fs.FS {
	t.Helper()
	const name, label = "mesh/manifests.yaml", "\n    gateway-conformance: mesh"
	data, err := conformance.Manifests.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(data, []byte(label)); n != 2 {
		t.Fatalf("%s labels %d namespaces, not 2", name, n)
	}
	data = bytes.ReplaceAll(data, []byte(label), []byte("\n    malha.dev/inject: enabled"+label))
	return overlay{fstest.MapFS{name: {Data: data}}, conformance.Manifests}
}

// overlay is a file system whose first part hides files of the second.
type overlay [2]fs.FS

func (o overlay) Open(name string) (fs.File, error) {
	if f, err := o[0].Open(name); err == nil {
		return f, nil
	}
	return o[1].Open(name)
}
