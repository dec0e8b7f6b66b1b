package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
)

func (s *session) logs() *cobra.Command {
	var (
		follow, proxy, stamps bool
		tail                  int
		namespace             string
	)
	cmd := &cobra.Command{
		Use:   "logs [NS/]WORKLOAD",
		Short: "Print what a workload or its proxy wrote",
		Long:  "Print the last lines that a workload's program, or with --proxy its proxy, wrote. The mesh keeps 500 of each.",
		Example: `  malha logs reviews-v2 -f
  malha logs reviews-v2 --proxy --tail 20`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.completeWorkloads,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.mesh()
			if err != nil {
				return err
			}
			st, err := m.status(cmd.Context())
			if err != nil {
				return err
			}
			name := args[0]
			if cmd.Flags().Changed("namespace") && !strings.Contains(name, "/") { // without -n it may be the only one of its name
				name = namespace + "/" + name
			}
			p, err := findProxy(st, name)
			if err != nil {
				return err
			}
			source := p.Name.String()
			if proxy || p.Role == "gateway" {
				source = local.ProxySource(p.Name)
			}
			r, err := m.do(cmd.Context(), http.MethodGet, "/v1/logs", url.Values{
				"source": {source}, "tail": {strconv.Itoa(tail)}, "follow": {strconv.FormatBool(follow)},
			}, nil)
			if err != nil {
				return err
			}
			defer r.Close()
			for d := json.NewDecoder(r); ; {
				var l local.Line
				if err := d.Decode(&l); err != nil {
					if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || cmd.Context().Err() != nil {
						return nil
					}
					return fmt.Errorf("the mesh broke off: %w", err)
				}
				if stamps {
					fmt.Fprint(s.ui.out, l.Time.Format("2006-01-02T15:04:05.000Z07:00 "))
				}
				fmt.Fprintln(s.ui.out, l.Text)
			}
		},
	}
	s.addNamespace(cmd, &namespace, "`NAMESPACE` of the workload")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "keep printing what is written from now on")
	cmd.Flags().BoolVar(&proxy, "proxy", false, "the proxy beside the workload")
	cmd.Flags().BoolVar(&stamps, "timestamps", false, "print when each line was written")
	cmd.Flags().IntVar(&tail, "tail", 100, "how many lines to start with")
	return cmd
}
