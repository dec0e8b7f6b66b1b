package proxy

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/flags"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/handover"
)

// Config is what malha-proxy is told on its command line or in its environment.
type Config struct {
	// A proxy runs from a file, or from a control plane.
	Plan     string // path of a plan in JSON
	Identity string // folder with cert.pem, key.pem and roots.pem; Plan only

	Control string     // host:port of the control plane
	Roots   string     // PEM bundle that the control plane's certificate leads to
	Trust   string     // trust domain of the mesh; "" the default
	Token   string     // file with the token that says who we are
	Node    ident.Name // the workload or gateway
	Role    plan.Role
	State   string // folder that outlives a restart; "" none

	Handover string // path of the socket over which a new process takes over; "" in State, "off" none

	Admin          string // host:port; "" none
	Health         string // host:port for everybody: readiness and the application's probes; "" none
	Metrics        string // host:port for everybody: readiness and metrics; "" none
	SameUser       bool   // only programs of our user, or root's, send through us and command
	MaxConnections int    // downstream, of the process; 0: half of the file descriptors that it may open
	MaxHandshakes  int    // TLS handshakes at one time; 0: the default
	Limits         Limits // of connections and messages
	AccessLog      string // off, stdout, or a path
	Telemetry      string // on or off: whether traffic is counted
	Concurrency    int    // operating system threads that run Go code; 0: by role
	DrainTimeout   time.Duration
	LogLevel       slog.Level
	LogFormat      string // text or json
	Version        bool   // print it and exit
}

const usage = `malha-proxy is the data plane of Malha: it carries the traffic of one workload or one gateway.

Run it from a plan file, with no control plane:
  malha compile -f DIR --proxy default/reviews-v1 -o plan.json
  malha-proxy --plan plan.json --access-log stdout

With an identity, for plans that speak mutual TLS (DIR has cert.pem, key.pem and roots.pem):
  malha-proxy --plan plan.json --identity DIR

From a control plane, as malha up and the injected sidecar do it:
  malha-proxy --control 127.0.0.1:15012 --roots roots.pem --token token --node default/reviews-v1 --state DIR

To upgrade without losing a connection, start the new malha-proxy with the same --state (or --handover) while the old one
runs: it takes the listeners over once it is ready, and the old one finishes what is open and exits 0.

Signals: SIGTERM and SIGINT drain for at most --drain-timeout and exit 0; the second one ends it at once. SIGHUP reads
--plan again.

Beside this there are malha-proxy capture and wait, which pods use (see their --help), and malha-proxy completion
bash|zsh|fish, which completes flags in a shell: source <(malha-proxy completion bash)

Each flag can also be set in the environment: MALHA_PROXY_ and the flag's name in capitals with '_' for '-'.

Flags:
`

// Parse reads arguments (without the program's name), and the environment for flags that are not given. Usage is
// written to out. The error is flag.ErrHelp when only that was asked for.
func Parse(args []string, getenv func(string) string, out io.Writer) (*Config, error) {
	c := &Config{}
	fs := flag.NewFlagSet("malha-proxy", flag.ContinueOnError)
	fs.StringVar(&c.Plan, "plan", "", "run from this plan `FILE` (JSON), without a control plane")
	fs.StringVar(&c.Identity, "identity", "", "with --plan: `DIR` with cert.pem, key.pem and roots.pem")
	fs.StringVar(&c.Control, "control", "", "run from the control plane at `HOST:PORT`")
	fs.StringVar(&c.Roots, "roots", "", "with --control: PEM `FILE` with the roots to trust it by")
	fs.StringVar(&c.Token, "token", "", "with --control: `FILE` with the token that says who this proxy is; read anew for each use")
	fs.StringVar(&c.Trust, "trust-domain", "", "with --control: trust `DOMAIN` of the mesh, which the control plane's certificate is of (default cluster.local)")
	node := fs.String("node", "", "with --control: the workload or gateway, `NAMESPACE/NAME`")
	role := fs.String("role", string(plan.Sidecar), "with --control: sidecar or gateway")
	fs.StringVar(&c.State, "state", "", "with --control: `DIR` for the last plan and the certificate, so that a restart does not need the control plane")
	fs.StringVar(&c.Handover, "handover", "", "`PATH` of the socket over which a new malha-proxy takes over from the one that runs; off for none\n(default handover.sock in --state, if that is given)")
	fs.StringVar(&c.Admin, "admin", "127.0.0.1:15000", "`HOST:PORT` for health, metrics and inspection; it has no authentication but --same-user; empty for none")
	fs.StringVar(&c.Health, "health", "", "`HOST:PORT` for /healthz/ready and the application's probes (MALHA_PROXY_PROBES), safe to show to everybody")
	fs.StringVar(&c.Metrics, "metrics", "", "`HOST:PORT` for /stats/prometheus, safe to show to everybody")
	fs.BoolVar(&c.SameUser, "same-user", false, "on a machine that people share: only programs of this proxy's user, and root's, may send through its outbound\nlisteners, command it at the admin port or read more than health and metrics there")
	fs.StringVar(&c.AccessLog, "access-log", "off", "off, stdout or a `FILE`: one JSON line for each request and connection")
	fs.StringVar(&c.Telemetry, "telemetry", "on", "on or off: count requests, sizes and latencies for /metrics; off is for measuring what it costs")
	fs.IntVar(&c.Concurrency, "concurrency", 0, "threads that run the proxy; 0: one for a sidecar, which leaves the rest of the machine to its\napplication and spares hand-overs between cores, and one for each core for a gateway")
	fs.IntVar(&c.MaxConnections, "max-connections", 0, "open connections of clients, of all listeners together; more are refused with an answer;\n0: half of the file descriptors that the process may open")
	fs.IntVar(&c.MaxHandshakes, "max-handshakes", 0, "TLS handshakes with clients at one time; 0: 512")
	fs.DurationVar(&c.DrainTimeout, "drain-timeout", 30*time.Second, "the longest time to wait for open requests at the end, and at a listener that a plan takes away")
	c.Limits.flags(fs)
	level := fs.String("log-level", "info", "debug, info, warn or error")
	fs.StringVar(&c.LogFormat, "log-format", "text", "text or json, on standard error")
	fs.BoolVar(&c.Version, "version", false, "print the version and exit")
	if err := flags.Parse(fs, usage, args, out); err != nil {
		return nil, err
	}
	given := map[string]bool{} // on the command line
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if err := fromEnvironment(fs, given, getenv); err != nil {
		return nil, err
	}
	if c.Version {
		return c, nil
	}
	if err := c.LogLevel.UnmarshalText([]byte(*level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", *level)
	}
	c.Role = plan.Role(*role)
	if *node != "" {
		var err error
		if c.Node, err = ident.ParseName(*node, ident.DefaultNamespace); err != nil {
			return nil, fmt.Errorf("--node: %w", err)
		}
	}
	for _, name := range []string{"node", "role", "roots", "token", "trust-domain"} {
		if given[name] && c.Control == "" && c.Plan != "" {
			return nil, fmt.Errorf("--%s goes with --control; with --plan, the plan says whose it is, and --identity is its certificate", name)
		}
	}
	return c, c.check()
}

// maxThreads is more than any machine is known to have. The runtime makes room for each.
const maxThreads = 1024

// fromEnvironment sets what was not given on the command line.
func fromEnvironment(fs *flag.FlagSet, given map[string]bool, getenv func(string) string) error {
	var err error
	fs.VisitAll(func(f *flag.Flag) {
		name := "MALHA_PROXY_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := getenv(name); v != "" && !given[f.Name] && err == nil {
			if serr := fs.Set(f.Name, v); serr != nil {
				err = fmt.Errorf("environment variable %s=%q: %s; see malha-proxy --help", name, v, flags.Why(f, serr))
			}
		}
	})
	return err
}

// check finds what does not go together.
func (c *Config) check() error {
	switch {
	case c.Plan == "" && c.Control == "":
		return errors.New("nothing to run from: give --plan FILE or --control HOST:PORT; see malha-proxy --help")
	case c.Plan != "" && c.Control != "":
		return errors.New("--plan and --control exclude each other: a proxy runs from one of them")
	case c.Identity != "" && c.Plan == "":
		return errors.New("--identity goes with --plan; with --control the control plane issues the certificate")
	case c.Control != "" && (c.Node.IsZero() || c.Roots == "" || c.Token == "" && c.State == ""):
		return errors.New("--control needs --node, --roots, and --token (or a --state that holds a certificate)")
	case c.Role != plan.Sidecar && c.Role != plan.Gateway:
		return fmt.Errorf("--role %q: want sidecar or gateway", c.Role)
	case !handover.Supported && c.Handover != "" && c.Handover != "off":
		return errors.New("--handover: only on Linux can a new proxy take the sockets of the running one")
	case c.LogFormat != "text" && c.LogFormat != "json":
		return fmt.Errorf("--log-format %q: want text or json", c.LogFormat)
	case c.Concurrency < 0 || c.Concurrency > maxThreads:
		return fmt.Errorf("--concurrency %d: want 0 to %d", c.Concurrency, maxThreads)
	case c.MaxConnections < 0 || c.MaxHandshakes < 0:
		return errors.New("--max-connections and --max-handshakes: want 0 or more")
	case c.DrainTimeout < 0:
		return fmt.Errorf("--drain-timeout %s: want 0 or more", c.DrainTimeout)
	case c.Telemetry != "on" && c.Telemetry != "off":
		return fmt.Errorf("--telemetry %q: want on or off", c.Telemetry)
	case c.AccessLog == "":
		return errors.New("--access-log is empty: want off, stdout or a file")
	}
	if err := c.Limits.check(); err != nil {
		return err
	}
	for _, a := range []struct{ flag, addr string }{{"--control", c.Control}, {"--admin", c.Admin}, {"--health", c.Health}, {"--metrics", c.Metrics}} {
		if a.addr == "" {
			continue
		}
		_, port, err := net.SplitHostPort(a.addr)
		if err == nil {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil {
			return fmt.Errorf("%s %q: %w: want HOST:PORT", a.flag, a.addr, err)
		}
	}
	return nil
}
