package ctl

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/model"
)

func (s *session) status() *cobra.Command {
	out := format("table")
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show each proxy with its sync state",
		Long: `Show each proxy of the running mesh: whether it runs the configuration in force, for how long, when its certificate
expires, how often it was restarted and how it is doing.

Exits with 1 when a proxy refused its configuration, when a proxy or a program keeps crashing, when the folder has
errors, so that something is not in force as it is written, or when the mesh did not become ready in time.`,
		Example: `  malha status
  malha status -o json | jq '.proxies[] | select(.sync != "SYNCED")'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := s.mesh()
			if err != nil {
				return err
			}
			st, err := m.status(cmd.Context())
			if err != nil {
				return err
			}
			if out != "table" {
				err = out.encode(s.ui.out, st)
			} else {
				s.proxies(st)
				s.ui.diagnostics(st.Diagnostics)
				for _, p := range st.Problems {
					s.ui.say("%s %s", paint(s.ui.errColor, yellow, "problem:"), p)
				}
			}
			if err == nil && !healthy(st) {
				return exitCode(1)
			}
			return err
		},
	}
	addFormat(cmd, &out)
	return cmd
}

func addFormat(cmd *cobra.Command, out *format) {
	cmd.Flags().VarP(out, "output", "o", "format: table, yaml or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "yaml", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// healthy reports whether no proxy and no program is in trouble.
func healthy(st *local.Status) bool {
	for _, w := range st.Workloads {
		if w.Health == local.HealthCrashing {
			return false
		}
	}
	for _, p := range st.Proxies {
		if p.Sync == local.SyncFailed || p.Health == local.HealthCrashing || p.Health == local.HealthDown {
			return false
		}
	}
	return st.Phase != local.Failed && !model.HasErrors(st.Diagnostics)
}

// proxies writes the table of `malha status`.
func (s *session) proxies(st *local.Status) {
	now := time.Now()
	t := &table{}
	t.header("NAME", "ROLE", "SYNC", "CONFIG", "CERT", "RESTARTS", "HEALTH")
	for _, p := range st.Proxies {
		sync := string(p.Sync)
		if p.Reason != "" {
			sync += " (" + p.Reason + ")"
		}
		t.row(plain(p.Name.String()), plain(string(p.Role)), cell{sync, syncTone(p.Sync)}, plain(since(now, p.Applied)),
			plain(until(now, p.CertExpires)), plain(strconv.Itoa(p.Restarts)), cell{string(p.Health), healthTone(p.Health)})
	}
	t.write(s.ui.out, s.ui.outColor)
}

// workloads writes the table of `malha up`.
func (s *session) workloads(st *local.Status) {
	t := &table{}
	t.header("WORKLOAD", "VERSION", "PROXY", "HEALTH", "IDENTITY")
	for _, p := range st.Proxies {
		if p.Role == "gateway" {
			t.row(plain(p.Name.String()), plain("-"), cell{string(p.Sync), syncTone(p.Sync)}, cell{string(p.Health), healthTone(p.Health)}, plain("gateway"))
		}
	}
	for _, w := range st.Workloads {
		health := string(w.Health)
		if w.Reason != "" && w.Health != local.HealthReady {
			health += " (" + w.Reason + ")"
		}
		t.row(plain(w.Name.String()), plain(dash(w.Version)), cell{string(w.Sync), syncTone(w.Sync)}, cell{health, healthTone(w.Health)}, plain(w.Identity))
	}
	t.write(s.ui.out, s.ui.outColor)
}

func syncTone(s local.Sync) style {
	switch s {
	case local.Synced:
		return green
	case local.SyncFailed:
		return red
	}
	return yellow
}

func healthTone(h local.Health) style {
	switch h {
	case local.HealthReady:
		return green
	case local.HealthCrashing, local.HealthDown:
		return red
	}
	return yellow
}

func since(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return age(max(0, now.Sub(t)))
}

func until(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case t.Before(now):
		return "expired"
	}
	return age(t.Sub(now))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
