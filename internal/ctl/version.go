package ctl

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (s *session) versionText() string {
	return fmt.Sprintf("malha %s (%s, %s/%s)", s.version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func (s *session) versionCommand() *cobra.Command {
	out := format("table")
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Print the version",
		Example:           "  malha version -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if out == "table" {
				fmt.Fprintln(s.ui.out, s.versionText())
				return nil
			}
			return out.encode(s.ui.out, map[string]string{"version": s.version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		},
	}
	addFormat(cmd, &out)
	return cmd
}
