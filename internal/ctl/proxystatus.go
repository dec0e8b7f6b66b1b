package ctl

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/check"
)

func (s *session) proxyStatus() *cobra.Command {
	var k kube
	out := format("table")
	cmd := &cobra.Command{
		Use:     "proxy-status [POD]",
		Aliases: []string{"ps"},
		Short:   "Show each proxy of the cluster with its sync state",
		Long: `Show every proxy that the control plane knows: whether it runs the configuration in force, since when, and when its
certificate expires. A proxy that refused something goes on with what it had, and says why.

Exits with 1 when a proxy refused its configuration.`,
		Example: `  malha proxy-status -n shop
  malha proxy-status -o json | jq '.[] | select(.sync != "synced")'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: s.completePods(&k),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.open(&k)
			if err != nil {
				return err
			}
			answers, err := check.Ask(cmd.Context(), c, k.mesh)
			if err != nil {
				return err
			}
			shown := []control.ProxyStatus{}
			var ns, pod string
			if len(args) == 1 {
				if ns, pod, err = findPod(cmd.Context(), c, args[0]); err != nil {
					return err
				}
			}
			for _, p := range answers.Proxies {
				if len(args) == 1 {
					if p.Name.Namespace != ns || p.Name.Name != pod {
						continue
					}
				} else if k.Namespace != "" && p.Name.Namespace != k.Namespace {
					continue
				}
				shown = append(shown, p)
			}
			if out != "table" {
				err = out.encode(s.ui.out, shown)
			} else {
				s.clusterProxies(shown, time.Now())
			}
			if len(shown) == 0 {
				s.ui.say("the control plane knows no such proxy; `malha check --proxy` says which pods have none")
			}
			for _, p := range shown {
				if p.Sync == control.Failed {
					return exitCode(1)
				}
			}
			return err
		},
	}
	clusterFlags(cmd, &k, true)
	addFormat(cmd, &out)
	return cmd
}

func (s *session) clusterProxies(all []control.ProxyStatus, now time.Time) {
	t := &table{}
	t.header("NAME", "ROLE", "SYNC", "CONFIG", "CERT", "VERSION")
	for _, p := range all {
		tone := yellow
		switch p.Sync {
		case control.Synced:
			tone = green
		case control.Failed:
			tone = red
		}
		sync := string(p.Sync)
		if p.Reason != "" {
			sync += " (" + p.Reason + ")"
		}
		t.row(plain(p.Name.String()), plain(dash(string(p.Role))), cell{sync, tone}, plain(since(now, p.Changed)), plain(until(now, p.CertExpires)), plain(dash(p.Version)))
	}
	t.write(s.ui.out, s.ui.outColor)
}
