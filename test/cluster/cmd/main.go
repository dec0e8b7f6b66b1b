// The command behind `make cluster-up` and `make cluster-down`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/malha-mesh/malha/test/cluster"
)

func main() {
	var o cluster.Options
	flag.StringVar(&o.Name, "name", "malha", "name of the cluster")
	flag.IntVar(&o.Nodes, "nodes", 0, "number of nodes: at least one, and as many as there are")
	flag.IntVar(&o.Index, "index", 0, "0 to 3: clusters with different indexes have different addresses")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: cluster [flags] possible | up | down | load ARCHIVE… | run COMMAND…")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.Log = os.Stderr
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := do(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func do(ctx context.Context, o cluster.Options, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "up":
		c, err := cluster.Up(ctx, o)
		if err == nil && !c.External {
			fmt.Fprintln(os.Stderr, "next: make cluster-run CMD='kubectl get pods -A', and make cluster-down when done")
		}
		return err
	case len(args) == 1 && args[0] == "possible":
		return cluster.Possible()
	case len(args) == 1 && args[0] == "down":
		return cluster.Down(ctx, o)
	case len(args) > 1 && (args[0] == "run" || args[0] == "load"):
		c := cluster.Open(o)
		if !c.Running() {
			return errors.New("the cluster does not run: start it with make cluster-up")
		}
		if args[0] == "load" {
			for _, archive := range args[1:] {
				if err := c.LoadArchive(ctx, archive); err != nil {
					return err
				}
			}
			return nil
		}
		cmd := c.Command(ctx, args[1], args[2:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	flag.Usage()
	return flag.ErrHelp
}
