// Load is an application under load and its clients, for the figures of docs/kubernetes.md. As a server it speaks HTTP/1.1,
// HTTP/2 and gRPC, and finishes what it has when it is told to end, at once and without waiting before: as an application
// does that knows nothing of meshes. As a client it asks such a server without a pause between failures and remembers each.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: load serve [ANSWER]       HTTP/1.1 and HTTP/2 on 8080, gRPC on 9090
       load ask HOST             a server, in all its protocols, until it is ended
       load watch URL PERIOD     notes when the answer of URL changes, until it is ended
       load report               prints what the load in this pod has seen, as JSON`

// reports is where ask and watch say what they have seen.
const reports = "127.0.0.1:8090"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch rest := args[1:]; {
	case args[0] == "serve" && len(rest) == 0:
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		return serve(ctx, name)
	case args[0] == "serve" && len(rest) == 1:
		return serve(ctx, rest[0])
	case args[0] == "ask" && len(rest) == 1:
		return ask(ctx, rest[0])
	case args[0] == "watch" && len(rest) == 2:
		return watch(ctx, rest[0], rest[1])
	case args[0] == "report" && len(rest) == 0:
		return report(ctx)
	}
	return errors.New(usage)
}

func report(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reports+"/", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
