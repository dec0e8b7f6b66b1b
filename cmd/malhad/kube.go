package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/malha-mesh/malha/internal/admit"
	"github.com/malha-mesh/malha/internal/app/kube"
	"github.com/malha-mesh/malha/internal/flags"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/inject"
)

const kubeUsage = `malhad kube is the control plane of a Malha mesh on Kubernetes. It reads what users wrote and where pods run from the API
server, serves each proxy its plan and signs its certificate, injects proxies into pods and checks objects by webhooks, and
writes statuses. It runs as a pod, by the Helm chart or "malha install"; several replicas share the work.

Usage: malhad kube [flags]

Its environment says which pod it is: POD_NAME, POD_NAMESPACE.

Flags:
`

// kubeSettings are the arguments of malhad kube.
type kubeSettings struct {
	o                     kube.Options
	kubeconfig, injection string
	adopt, roots, domain  string
	level                 slog.Level
}

func parseKube(args []string, getenv func(string) string, stdout io.Writer) (*kubeSettings, error) {
	s := &kubeSettings{o: kube.Options{Namespace: getenv("POD_NAMESPACE"), Replica: getenv("POD_NAME"), Version: version}}
	if s.o.Replica == "" {
		s.o.Replica, _ = os.Hostname() // else the election says what is missing
	}
	fs := flag.NewFlagSet("malhad kube", flag.ContinueOnError)
	fs.StringVar(&s.o.Control, "control-listen", ":15012", "`HOST:PORT` of the control stream, for proxies")
	fs.StringVar(&s.o.Webhook, "webhook-listen", ":15017", "`HOST:PORT` of the webhooks, for the API server; empty for none")
	fs.StringVar(&s.o.Monitor, "monitor-listen", ":15014", "`HOST:PORT` of /metrics, /healthz/ready and /healthz/live; empty for none")
	fs.StringVar(&s.o.Debug, "debug-listen", "127.0.0.1:15000", "`HOST:PORT` of /debug for malha's commands; it has no authentication; empty for none")
	fs.StringVar(&s.o.Namespace, "namespace", s.o.Namespace, "where the mesh is installed (default POD_NAMESPACE, else malha-system)")
	fs.StringVar(&s.o.TrustDomain, "trust-domain", ident.DefaultTrustDomain, "trust domain of the identities")
	fs.StringVar(&s.domain, "cluster-domain", "cluster.local", "the cluster's DNS domain")
	fs.DurationVar(&s.o.CertTTL, "cert-ttl", ca.DefaultTTL, "lifetime of certificates")
	fs.DurationVar(&s.o.ConnectionAge, "connection-age", 30*time.Minute, "how long a proxy stays connected to one replica at most, and half of it at least: then it is asked to connect again, so that replicas share the proxies after one was replaced; 0 for no bound")
	fs.StringVar(&s.roots, "root-namespaces", "", "namespaces whose policies are those of the whole mesh, separated by commas (default --namespace)")
	fs.StringVar(&s.adopt, "adopt", "", "meshes whose labels and annotations are obeyed too: istio, linkerd, separated by a comma")
	fs.StringVar(&s.injection, "injection", "", "`FILE` with the settings of injection (YAML); without it and --proxy-image nothing is injected")
	fs.StringVar(&s.o.ProxyImage, "proxy-image", "", "image of malha-proxy, for Gateways and, without --injection, for pods")
	fs.BoolVar(&s.o.NoGateways, "no-gateways", false, "make no Deployments and Services for Gateways of class malha")
	fs.DurationVar(&s.o.Linger, "linger", 3*time.Second, "how long to serve on, unready, after SIGTERM, until nothing is led here any more")
	fs.StringVar(&s.kubeconfig, "kubeconfig", "", "`FILE` to reach the API server by, outside a pod")
	fs.TextVar(&s.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := flags.Parse(fs, kubeUsage, args, stdout); err != nil {
		return nil, err
	}
	switch {
	case s.o.ConnectionAge < 0 || s.o.ConnectionAge > 0 && s.o.ConnectionAge < 10*time.Second:
		return nil, fmt.Errorf("--connection-age %s: give at least 10s, or 0 for no bound", s.o.ConnectionAge)
	case s.domain != "cluster.local":
		return nil, fmt.Errorf("--cluster-domain %q: hosts of Services end in cluster.local in this version", s.domain)
	}
	if s.o.Namespace == "" {
		s.o.Namespace = "malha-system"
	}
	s.o.Roots = words(s.roots)
	return s, nil
}

// words splits a list at its commas.
func words(list string) []string {
	return slices.DeleteFunc(strings.Split(list, ","), func(w string) bool { return w == "" })
}

// settings returns the settings of injection; nil: nothing is injected.
func (s *kubeSettings) settings() (*inject.Config, error) {
	var c *inject.Config
	switch {
	case s.injection != "":
		data, err := os.ReadFile(s.injection)
		if err != nil {
			return nil, fmt.Errorf("reading the settings of injection: %w", err)
		}
		if c, err = inject.ReadConfig(data); err != nil {
			return nil, fmt.Errorf("%s: %w", s.injection, err)
		}
	case s.o.ProxyImage != "":
		c = inject.Defaults(s.o.ProxyImage)
	default:
		return nil, nil
	}
	if standard := "malhad." + c.Namespace + ".svc:15012"; c.Namespace != s.o.Namespace {
		if c.Control == standard {
			c.Control = "malhad." + s.o.Namespace + ".svc:15012"
		}
		c.Namespace = s.o.Namespace
	}
	if len(c.Adopt) == 0 {
		for _, w := range words(s.adopt) {
			c.Adopt = append(c.Adopt, inject.Dialect(w))
		}
	}
	if c.Trust == "" && s.o.TrustDomain != ident.DefaultTrustDomain {
		c.Trust = s.o.TrustDomain
	}
	s.o.PullPolicy, s.o.ProxyLogLevel = string(c.Pull), c.LogLevel
	if s.o.ProxyImage == "" {
		s.o.ProxyImage = c.Image
	}
	return c, c.Check()
}

// Pace of questions to the API server. It has its own limits, by priority and fairness.
const (
	rate, burst             = 50, 100
	reviewRate, reviewBurst = 400, 800
)

// clients returns clients of the cluster that the pod runs in, or of a kubeconfig.
func (s *kubeSettings) clients() (kube.Clients, error) {
	var out kube.Clients
	var cfg *rest.Config
	var err error
	if s.kubeconfig != "" {
		cfg, err = clientcmd.BuildConfigFromFlags("", s.kubeconfig)
	} else {
		cfg, err = rest.InClusterConfig()
	}
	if err != nil {
		return out, fmt.Errorf("finding the API server (outside a pod give --kubeconfig FILE): %w", err)
	}
	cfg.UserAgent, cfg.QPS, cfg.Burst = "malhad/"+version, rate, burst
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return out, err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return out, err
	}
	meta, err := metadata.NewForConfig(cfg)
	if err != nil {
		return out, err
	}
	faster := rest.CopyConfig(cfg)
	faster.QPS, faster.Burst = reviewRate, reviewBurst
	reviews, err := kubernetes.NewForConfig(faster)
	if err != nil {
		return out, err
	}
	return kube.Clients{
		Kubernetes: core, Dynamic: dyn, Metadata: meta, Reviews: reviews,
		Mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(core.Discovery())),
	}, nil
}

// serveKube serves the cluster until ctx ends.
func serveKube(ctx context.Context, s *kubeSettings, log *slog.Logger) error {
	klog.SetSlogLogger(log) // client-go's own words: election, watches
	s.o.Log = log
	injection, err := s.settings()
	if err != nil {
		return err
	}
	clients, err := s.clients()
	if err != nil {
		return err
	}
	if injection != nil {
		s.o.Answers = kube.NewAnswers()
		s.o.Webhooks = admit.New(admit.Options{
			Counted: s.o.Answers.Count,
			Inject:  func() *inject.Config { return injection },
			Namespace: func(ctx context.Context, name string) (inject.Namespace, error) {
				ns, err := clients.Reviews.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
				if err != nil {
					return inject.Namespace{}, err
				}
				return inject.Namespace{Name: name, Labels: ns.Labels, Annotations: ns.Annotations}, nil
			},
			Log: log,
		})
	} else {
		log.Warn("there are no webhooks: nothing is injected or checked before it is stored", "next", "give --injection FILE or --proxy-image IMAGE")
	}
	server, err := kube.Open(clients, s.o)
	if err != nil {
		return err
	}
	log.Info("serving", "control", s.o.Control, "webhooks", s.o.Webhook, "monitor", s.o.Monitor, "namespace", s.o.Namespace, "replica", s.o.Replica, "trust_domain", s.o.TrustDomain)
	if err := server.Run(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// runKube is run for the sub-command.
func runKube(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	s, err := parseKube(args, getenv, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "malhad:", err)
		return 2
	}
	if err := serveKube(ctx, s, slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: s.level}))); err != nil {
		fmt.Fprintln(stderr, "malhad:", err)
		return 1
	}
	return 0
}
