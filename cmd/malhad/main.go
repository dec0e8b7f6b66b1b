// Command malhad is the control plane of Malha by itself: it reads a folder of manifests or, as malhad kube, a Kubernetes API
// server, follows its changes, and serves each proxy its plan and its certificate. internal/app/control and internal/app/kube do
// the work; here are the folder, the placement, the tokens, the clients, and the process's edges: arguments, signals, exit codes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/flags"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
)

// version is set by the release build: -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, restore) // the second signal ends the process
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `malhad is the control plane of a Malha mesh: it compiles a folder of manifests into a plan for each proxy, serves the
plans, and signs the proxies' certificates. It starts no workload and no proxy; on one machine, "malha up" does all of it.

Usage: malhad --config DIR [--state DIR] [--listen ADDR]
       malhad kube [flags]                    on Kubernetes; see malhad kube --help
       malhad completion bash|zsh|fish        completion for a shell: source <(malhad completion bash)

Workloads and proxies listen where the folder says ("address:") and, where it doesn't, on ports of 127.0.0.1 from 20000
upward, given out in the order of their names; "malha compile" shows the same. In the state folder malhad keeps the root
of the certificates (ca/root.pem for proxies to verify by, ca/root-key.pem) and a token for each proxy (tokens/NS/NAME),
with which it proves who it is:

  malha-proxy --control ADDR --node NS/NAME --roots STATE/ca/root.pem --token STATE/tokens/NS/NAME

Flags:
`

// settings are the arguments.
type settings struct {
	config, state, listen, trustDomain string
	certTTL                            time.Duration
	level                              slog.Level
	version                            bool
}

func parse(args []string, stdout io.Writer) (*settings, error) {
	var s settings
	fs := flag.NewFlagSet("malhad", flag.ContinueOnError)
	fs.StringVar(&s.config, "config", "", "`DIR` of manifests (required)")
	fs.StringVar(&s.state, "state", "malhad-state", "`DIR` for the root of the certificates and the tokens; made with mode 0700")
	fs.StringVar(&s.listen, "listen", "127.0.0.1:15012", "`HOST:PORT` for proxies")
	fs.StringVar(&s.trustDomain, "trust-domain", ident.DefaultTrustDomain, "trust `DOMAIN` of the identities")
	fs.DurationVar(&s.certTTL, "cert-ttl", ca.DefaultTTL, "lifetime of certificates")
	fs.TextVar(&s.level, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn or error")
	fs.BoolVar(&s.version, "version", false, "print the version and exit")
	if err := flags.Parse(fs, usage, args, stdout); err != nil {
		return nil, err
	}
	if s.version {
		return &s, nil
	}
	if s.config == "" {
		return nil, errors.New("--config DIR is missing; see malhad --help")
	}
	if s.state == "" {
		return nil, errors.New("--state is empty; name a folder for the root of the certificates")
	}
	_, port, err := net.SplitHostPort(s.listen)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return nil, fmt.Errorf("--listen %q: %w: want HOST:PORT", s.listen, err)
	}
	return &s, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "kube":
			return runKube(ctx, args[1:], os.Getenv, stdout, stderr)
		case "completion":
			return flags.PrintCompletion(stdout, stderr, "malhad", args[1:], "kube")
		}
	}
	s, err := parse(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "malhad:", err)
		return 2
	case s.version:
		fmt.Fprintln(stdout, "malhad", version)
		return 0
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: s.level}))
	if err := serveFolder(ctx, s, stderr, log); err != nil {
		fmt.Fprintln(stderr, "malhad:", err)
		return 1
	}
	return 0
}
