package ctl

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
)

func (s *session) url() *cobra.Command {
	return &cobra.Command{
		Use:   "url gateway|metrics [[NS/]NAME]",
		Short: "Print the address of the gateway or of the metrics",
		Long: `Print an address of the running mesh.

  gateway [NAME]   where a gateway listens, one address for each of its ports
  metrics          one Prometheus page with the metrics of every proxy, told apart by the label proxy; the same
                   address with /targets is an http_sd document for a Prometheus that scrapes each proxy itself
  metrics NAME     the metrics of one workload's proxy`,
		Example: `  curl "$(malha url gateway)/productpage"
  curl -s "$(malha url metrics)" | grep istio_requests_total`,
		Args: cobra.MatchAll(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return []string{"gateway", "metrics"}, cobra.ShellCompDirectiveNoFileComp
			}
			return s.completeWorkloads(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] != "gateway" && args[0] != "metrics" {
				return fmt.Errorf("%q has no address; ask for gateway or metrics", args[0])
			}
			m, err := s.mesh()
			if err != nil {
				return err
			}
			st, err := m.status(cmd.Context())
			if err != nil {
				return err
			}
			if args[0] == "gateway" {
				return s.gatewayURL(st, args[1:])
			}
			if len(args) == 1 {
				fmt.Fprintln(s.ui.out, st.Metrics)
				return nil
			}
			p, err := findProxy(st, args[1])
			if err != nil {
				return err
			}
			if p.Admin == "" {
				return fmt.Errorf("the proxy of %s has no metrics yet; see `malha status`", p.Name)
			}
			fmt.Fprintln(s.ui.out, "http://"+p.Admin+"/metrics")
			return nil
		},
	}
}

func (s *session) gatewayURL(st *local.Status, args []string) error {
	found := false
	for _, d := range st.Doors {
		if len(args) == 1 && d.Gateway.Name != args[0] && d.Gateway.String() != args[0] {
			continue
		}
		fmt.Fprintln(s.ui.out, d.URL)
		found = true
	}
	switch {
	case found:
		return nil
	case len(args) == 1:
		return fmt.Errorf("no gateway %q is open; see `malha status` for the gateways there are", args[0])
	}
	return errors.New("no gateway is open: the configuration has no Gateway; add one, or reach a service with `malha curl --from WORKLOAD URL`")
}

// findProxy finds a proxy by "NAME" (of the default namespace, or the only one of that name) or "NAMESPACE/NAME".
func findProxy(st *local.Status, arg string) (*local.ProxyStatus, error) {
	name, err := ident.ParseName(arg, ident.DefaultNamespace)
	if err != nil {
		return nil, err
	}
	var same []*local.ProxyStatus
	for i := range st.Proxies {
		p := &st.Proxies[i]
		if p.Name == name {
			return p, nil
		}
		if p.Name.Name == arg {
			same = append(same, p)
		}
	}
	switch len(same) {
	case 1:
		return same[0], nil
	case 0:
		names := make([]string, 0, 2*len(st.Proxies))
		for i := range st.Proxies {
			names = append(names, st.Proxies[i].Name.Name, st.Proxies[i].Name.String())
		}
		return nil, fmt.Errorf("no workload %q in the mesh%s", arg, cmp.Or(didYouMean(arg, names), "; `malha get workloads -A` lists them"))
	}
	return nil, fmt.Errorf("more than one workload is called %q; write NAMESPACE/%s", arg, arg)
}
