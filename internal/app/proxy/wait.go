package proxy

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/malha-mesh/malha/internal/flags"
	"github.com/malha-mesh/malha/internal/probe"
	"github.com/malha-mesh/malha/internal/proxy/inquiry"
)

const waitUsage = `malha-proxy wait returns as soon as the proxy beside it is ready for traffic.

The injector calls it after the start of the proxy's container, so that what starts behind it has the network.

Flags:
`

// waitPause is between two questions: a few of them cost nothing, and each adds to the start of a pod.
const waitPause = 10 * time.Millisecond

// Wait is `malha-proxy wait`: it returns nil once the proxy is ready, else why it was not until the end of its time.
func Wait(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("malha-proxy wait", flag.ContinueOnError)
	port := fs.Int("port", 15021, "the proxy's health `PORT`")
	limit := fs.Duration("for", 60*time.Second, "the longest time to wait")
	if err := flags.Parse(fs, waitUsage, args, out); err != nil {
		return err
	}
	const question = "/healthz/ready"
	set := probe.Set{question: {HTTP: &probe.HTTP{Port: *port, Path: question}}}
	asker := inquiry.New(set, "")
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	for {
		err := asker.Ask(ctx, question)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the proxy at %s is not ready after %s: %w", net.JoinHostPort("127.0.0.1", strconv.Itoa(*port)), *limit, err)
		case <-time.After(waitPause):
		}
	}
}
