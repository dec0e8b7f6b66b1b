// Load is an application under load and its clients, for the figures of docs/kubernetes.md. As a server it speaks HTTP/1.1,
// HTTP/2 and gRPC, and ends as soon as it is told to, without waiting before: as an application does that knows nothing of
// meshes. As a client it asks such a server without a pause between failures and remembers each.
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

const usage = `usage: load serve                HTTP/1.1 and HTTP/2 on 8080, gRPC on 9090, until it is ended: then it finishes what it has
       load serve abruptly       the same, but it finishes nothing
       load ask HOST             a server, in all its protocols, until it is ended
       load ask HOST http        without gRPC
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
		return serve(ctx)
	case args[0] == "serve" && len(rest) == 1 && rest[0] == "abruptly":
		context.AfterFunc(ctx, func() { os.Exit(0) })
		return serve(context.Background())
	case args[0] == "ask" && len(rest) == 1:
		return ask(ctx, rest[0], true)
	case args[0] == "ask" && len(rest) == 2 && rest[1] == "http":
		return ask(ctx, rest[0], false)
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
