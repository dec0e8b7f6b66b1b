// Command malha-proxy is the data plane of Malha: the proxy of one workload or one gateway. internal/app/proxy does the
// work; here are only the process's edges: arguments, signals, exit codes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/malha-mesh/malha/internal/app/proxy"
	"github.com/malha-mesh/malha/internal/flags"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(run())
}

func run() int {
	if len(os.Args) > 1 {
		switch args := os.Args[2:]; os.Args[1] {
		case "capture":
			return runCapture(args)
		case "wait":
			return report(proxy.Wait(context.Background(), args, os.Stdout))
		case "completion":
			return flags.PrintCompletion(os.Stdout, os.Stderr, "malha-proxy", args, "capture", "wait")
		}
	}
	cfg, err := proxy.Parse(os.Args[1:], os.Getenv, os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "malha-proxy:", err)
		return 2
	case cfg.Version:
		fmt.Println("malha-proxy", version)
		return 0
	}
	// The first signal drains. It also gives the signals back to the system, so that the second one ends the process.
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer restore()
	context.AfterFunc(ctx, restore)
	// Whoever reads our output may go away: a write then fails, and is told. It must not end the process (os/signal, SIGPIPE).
	signal.Ignore(syscall.SIGPIPE)
	defer profile()()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	if err := proxy.Run(ctx, proxy.Options{Config: cfg, Version: version, Getenv: os.Getenv, Stdout: os.Stdout, Stderr: os.Stderr, Reload: reload}); err != nil {
		fmt.Fprintln(os.Stderr, "malha-proxy:", err)
		return 1
	}
	return 0
}

// report prints the error of a sub-command and returns its exit code.
func report(err error) int {
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintln(os.Stderr, "malha-proxy:", err)
	return 1
}
