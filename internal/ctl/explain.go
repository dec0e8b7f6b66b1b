package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/plan"
)

func (s *session) explainCommand() *cobra.Command {
	var (
		out     = format("table")
		paths   []string
		headers []string
		from    string
		client  string
		req     explain.Request
	)
	cmd := &cobra.Command{
		Use:   "explain --from [NS/]WORKLOAD|gateway URL | explain REQUEST-ID",
		Short: "Say where a request goes and which line says so, without sending it",
		Long: `Walk a request through the rules of the running mesh, or with -f of a folder, without sending anything: the listener,
the host, each rule that is tried and why it does or does not match, what the rule does, the destinations with their
shares, their endpoints, and at the far side each policy and whether it lets the request in. Each step names the file and
line it comes from. It is the proxy's own router and authorizer that are asked.

--from gateway asks about a request of a stranger. tcp://HOST:PORT and https:// ask about opaque connections, and
grpc://HOST:PORT/SERVICE/METHOD about gRPC.

With a request id instead (x-request-id, in every answer's log line) it tells what each proxy of the running mesh did with
that request. The mesh must have been started with --access-log; the last 500 lines of each proxy are looked at.`,
		Example: `  malha explain --from productpage-v1 http://reviews:9080/reviews/0
  malha explain --from productpage-v1 -H 'x-canary: true' http://reviews:9080/reviews/0
  malha explain -f samples/bookinfo/mesh --from gateway http://bookinfo.example:8080/productpage
  malha explain --from details-v1 -X DELETE -o json http://ratings:9080/ratings/0
  malha explain 2f1c7d1e-8f8a-4c8e-9f0e-5b0a9f0c7a11`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"http://"}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if from == "" {
				if len(paths) > 0 {
					return errors.New("-f needs --from WORKLOAD and a URL: a folder has no request ids")
				}
				return s.trace(cmd.Context(), args[0], out)
			}
			for _, h := range headers {
				header, err := explain.ParseHeader(h)
				if err != nil {
					return err
				}
				req.Headers = append(req.Headers, header)
			}
			if client != "" {
				var err error
				if req.Client, err = netip.ParseAddr(client); err != nil {
					return fmt.Errorf("--client %q is not an IP address", client)
				}
			}
			req.URL = args[0]
			m, err := s.asked(cmd.Context(), paths)
			if err != nil {
				return err
			}
			name, err := m.Resolve(from)
			if err != nil {
				return err
			}
			w, err := m.Request(name, req)
			if err != nil {
				return err
			}
			if out != "table" {
				return out.encode(s.ui.out, w)
			}
			newWalkView(s.ui).show(w)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&paths, "filename", "f", nil, "`DIR` or file of manifests, or - for standard input; may be repeated (default: the running mesh)")
	f.StringVar(&from, "from", "", "the `WORKLOAD` that sends it, or gateway")
	f.StringVarP(&req.Method, "request", "X", "", "`METHOD` (default GET)")
	f.StringArrayVarP(&headers, "header", "H", nil, "header `LINE` 'name: value'")
	f.StringVar(&client, "client", "", "`ADDRESS` that a stranger of the gateway comes from (default 127.0.0.1)")
	addFormat(cmd, &out)
	_ = cmd.RegisterFlagCompletionFunc("from", s.completeSenders)
	_ = cmd.RegisterFlagCompletionFunc("request", cobra.FixedCompletions([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// trace tells what the proxies of the running mesh did with a request.
func (s *session) trace(ctx context.Context, id string, out format) error {
	m, err := s.mesh()
	if err != nil {
		return err
	}
	st, err := m.status(ctx)
	if err != nil {
		return err
	}
	var plans []*plan.Plan
	if err := m.get(ctx, "/v1/plans", nil, &plans); err != nil {
		return err
	}
	asked, err := explain.New(plans)
	if err != nil {
		return err
	}
	var written []explain.Written
	for _, p := range st.Proxies {
		w := explain.Written{Node: p.Name}
		if w.Lines, err = m.lines(ctx, local.ProxySource(p.Name)); err != nil {
			return err
		}
		written = append(written, w)
	}
	t := asked.Trace(id, written)
	switch {
	case len(t.Hops) > 0:
	case t.Logged == 0:
		return errors.New("the proxies have written no access log; start the mesh with `malha up --access-log`, and send a request (a URL is asked about with --from)")
	default:
		return fmt.Errorf("none of the last %d lines of the access logs has the request id %q; each proxy's last 500 lines are kept (a URL is asked about with --from)", t.Logged, id)
	}
	if out != "table" {
		return out.encode(s.ui.out, t)
	}
	newWalkView(s.ui).trace(t)
	return nil
}

// lines returns what the mesh has kept of a source.
func (c *client) lines(ctx context.Context, source string) ([]string, error) {
	r, err := c.do(ctx, http.MethodGet, "/v1/logs", url.Values{"source": {source}}, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out []string
	for d := json.NewDecoder(r); d.More(); {
		var l local.Line
		if err := d.Decode(&l); err != nil {
			return nil, fmt.Errorf("the mesh broke off: %w", err)
		}
		out = append(out, l.Text)
	}
	return out, nil
}

// millis shows a time of the access log.
func millis(n int64) string { return (time.Duration(n) * time.Millisecond).String() }
