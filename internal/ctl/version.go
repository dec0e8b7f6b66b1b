package ctl

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/check"
)

func (s *session) versionText() string {
	return fmt.Sprintf("malha %s (%s, %s/%s)", s.version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// versions is what -o shows.
type versions struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`

	Mesh string `json:"mesh,omitempty"` // that runs on this machine

	ControlPlane map[string]string `json:"controlPlane,omitempty"` // version of each replica, by the name of its pod
	Proxies      map[string]int    `json:"proxies,omitempty"`      // how many run each version
}

// patience bounds how long the version of a cluster is waited for.
const patience = 10 * time.Second

func (s *session) versionCommand() *cobra.Command {
	var (
		k          kube
		clientOnly bool
	)
	out := format("table")
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of the mesh",
		Long: `Print the version of this program, of the mesh that runs on this machine, and when a kubeconfig is there, those of the
control plane and of the proxies in its cluster.`,
		Example:           "  malha version -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := &versions{Version: s.version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			var why error
			if !clientOnly {
				if m, err := s.mesh(); err == nil {
					if st, err := m.status(cmd.Context()); err == nil { // without a mesh there is nothing to say of it
						v.Mesh = st.Version
					}
				}
				why = s.clusterVersions(cmd.Context(), &k, v)
			}
			if out != "table" {
				return out.encode(s.ui.out, v)
			}
			fmt.Fprintln(s.ui.out, s.versionText())
			if v.Mesh != "" {
				fmt.Fprintf(s.ui.out, "mesh on this machine %s\n", v.Mesh)
			}
			for _, pod := range slices.Sorted(maps.Keys(v.ControlPlane)) {
				fmt.Fprintf(s.ui.out, "control plane %s (%s)\n", v.ControlPlane[pod], pod)
			}
			var parts []string
			for _, version := range slices.Sorted(maps.Keys(v.Proxies)) {
				parts = append(parts, fmt.Sprintf("%s (%d)", version, v.Proxies[version]))
			}
			if len(parts) > 0 {
				fmt.Fprintln(s.ui.out, "proxies "+strings.Join(parts, ", "))
			}
			if why != nil {
				s.ui.say("the cluster: %v", why)
			}
			return nil
		},
	}
	clusterFlags(cmd, &k, false)
	cmd.Flags().BoolVar(&clientOnly, "client", false, "ask neither mesh nor cluster")
	addFormat(cmd, &out)
	return cmd
}

// clusterVersions asks the cluster, if one is configured. The error says why it did not answer.
func (s *session) clusterVersions(ctx context.Context, k *kube, v *versions) error {
	c, err := s.open(k)
	if err != nil {
		if k.Kubeconfig == "" && k.Context == "" {
			return nil // there is none, and none was asked for
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answers, err := check.Ask(ctx, c, k.mesh)
	if err != nil {
		return err
	}
	v.ControlPlane, v.Proxies = answers.Versions, map[string]int{}
	for _, p := range answers.Proxies {
		if p.Version != "" {
			v.Proxies[p.Version]++
		}
	}
	return nil
}
