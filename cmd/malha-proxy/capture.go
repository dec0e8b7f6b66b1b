package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/malha-mesh/malha/internal/capture"
	"github.com/malha-mesh/malha/internal/capture/kernel"
	"github.com/malha-mesh/malha/internal/flags"
)

const captureUsage = `malha-proxy capture redirects the traffic of this network namespace to the proxy in it: TCP connections to the workload and
from it, and with --dns queries of names. It replaces what an earlier run has set, and ends. It takes root
with the capability NET_ADMIN: it is the init step of an injected pod.

  malha-proxy capture --exclude-inbound-ports=22,9000-9010
  malha-proxy capture --dry-run      print the rules, as nft -f reads them
  malha-proxy capture --clean        take the rules away

A list has commas between its parts; a part of PORTS may be a range. What is excluded counts before what is included.

Flags:
`

// captureRequest is what the arguments of `malha-proxy capture` ask for.
type captureRequest struct {
	options       *capture.Options
	dryRun, clean bool
}

// portValue is a flag that is a port.
type portValue uint16

func (v *portValue) String() string { return strconv.Itoa(int(*v)) }

func (v *portValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return errors.New("want a port, 0 to 65535")
	}
	*v = portValue(n)
	return nil
}

// parseCapture reads arguments; readFile reads the resolv.conf whose servers' queries are captured.
func parseCapture(args []string, readFile func(string) ([]byte, error), out io.Writer) (*captureRequest, error) {
	o := capture.Defaults()
	r := &captureRequest{options: o}
	fs := flag.NewFlagSet("malha-proxy capture", flag.ContinueOnError)
	fs.Var((*portValue)(&o.Inbound), "inbound-port", "`PORT` of the proxy for connections to the workload")
	fs.Var((*portValue)(&o.Outbound), "outbound-port", "`PORT` of the proxy for connections of the workload")
	fs.Var((*portValue)(&o.DNS), "dns-port", "`PORT` of the proxy for queries of names; 0: they are not captured")
	queries := fs.Bool("dns", false, "capture queries of names, for the port that the proxy has for them")
	uid := fs.Uint64("uid", uint64(o.User), "user `ID` of the proxy, whose own traffic is not captured")
	gid := fs.Uint64("gid", uint64(o.Group), "group `ID` of the proxy, whose own traffic is not captured")
	resolv := fs.String("resolv-conf", "/etc/resolv.conf", "with --dns: queries to the servers in this `FILE` are captured; empty: to every server")
	for _, f := range capture.Flags() {
		fs.Func(f.Name, f.Usage, func(v string) error { return o.Set(f.Option, v) })
	}
	fs.BoolVar(&r.dryRun, "dry-run", false, "print the rules and change nothing")
	fs.BoolVar(&r.clean, "clean", false, "take the rules away")
	if err := flags.Parse(fs, captureUsage, args, out); err != nil {
		return nil, err
	}
	if *uid > math.MaxUint32 || *gid > math.MaxUint32 {
		return nil, errors.New("--uid and --gid: want less than 4294967296")
	}
	o.User, o.Group = uint32(*uid), uint32(*gid)
	if *queries && o.DNS == 0 {
		o.DNS = capture.DefaultDNS
	}
	if r.clean {
		return r, nil
	}
	if o.DNS != 0 && *resolv != "" {
		b, err := readFile(*resolv)
		if err != nil {
			return nil, fmt.Errorf("whose queries to capture is not known: %w (--resolv-conf= captures those of every server)", err)
		}
		o.Resolvers = capture.Resolvers(string(b))
		if len(o.Resolvers) == 0 {
			return nil, fmt.Errorf("%s names no server (--resolv-conf= captures the queries of every server)", *resolv)
		}
	}
	return r, o.Check()
}

func runCapture(args []string) int {
	r, err := parseCapture(args, os.ReadFile, os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "malha-proxy capture:", err)
		return 2
	case r.dryRun && r.clean:
		fmt.Printf("table inet %s\ndelete table inet %s\n", capture.Table, capture.Table)
		return 0
	case r.dryRun:
		fmt.Print(capture.Rules(r.options))
		return 0
	case r.clean:
		err = kernel.Clean()
	default:
		err = kernel.Apply(capture.Rules(r.options))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "malha-proxy capture:", err)
		return 1
	}
	if r.clean {
		fmt.Fprintln(os.Stderr, "malha-proxy capture: traffic is not redirected any more")
	} else {
		fmt.Fprintf(os.Stderr, "malha-proxy capture: traffic is redirected to the proxy: inbound %d, outbound %d, queries %d\n", r.options.Inbound, r.options.Outbound, r.options.DNS)
	}
	return 0
}
