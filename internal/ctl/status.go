package ctl

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

func (s *session) status() *cobra.Command {
	out := format("table")
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show each proxy with its sync state",
		Long: `Show each proxy of the running mesh, and how the program beside it is doing.

  SYNC      SYNCED: it runs the configuration in force; STALE: not yet, or it is not connected; ERROR: it refused it
  CONFIG    when what it runs came into force
  CERT      how long its certificate is good for; it gets another one well before
  RESTARTS  how often it and its program were started again
  HEALTH    of both: what is not ready, or why

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
				s.phase(st)
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

// phase says that a mesh is not up, or not any more.
func (s *session) phase(st *local.Status) {
	switch st.Phase {
	case local.Starting:
		s.ui.say("the mesh is starting")
	case local.Stopping:
		s.ui.say("%s", stopping(st))
	}
}

// stopping says that a mesh is being stopped, and what it waits for.
func stopping(st *local.Status) string {
	if len(st.Waiting) == 0 {
		return "the mesh is stopping"
	}
	return "the mesh is stopping: it waits for " + strings.Join(st.Waiting, ", ")
}

// proxies writes the table of `malha status`.
func (s *session) proxies(st *local.Status) {
	now := time.Now()
	workloads := make(map[ident.Name]*local.WorkloadStatus, len(st.Workloads))
	for i := range st.Workloads {
		workloads[st.Workloads[i].Name] = &st.Workloads[i]
	}
	t := &table{}
	t.header("NAME", "ROLE", "SYNC", "CONFIG", "CERT", "RESTARTS", "HEALTH")
	for i := range st.Proxies {
		p := &st.Proxies[i]
		w := workloads[p.Name]
		sync, restarts := string(p.Sync), p.Restarts
		if p.Reason != "" {
			sync += " (" + p.Reason + ")"
		}
		if w != nil {
			restarts += w.Restarts
		}
		t.row(plain(p.Name.String()), plain(string(p.Role)), cell{sync, syncTone(p.Sync)}, plain(ago(now, p.Applied)),
			plain(left(now, p.CertExpires)), plain(strconv.Itoa(restarts)), condition(p, w))
	}
	s.ui.table(t)
}

// condition is the health of a proxy and of the program beside it, nil for a gateway: what holds for both, else of which.
func condition(p *local.ProxyStatus, w *local.WorkloadStatus) cell {
	switch {
	case w == nil || p.Health == w.Health:
		return cell{string(p.Health), healthTone(p.Health)}
	case w.Health == local.HealthReady:
		return cell{"proxy " + string(p.Health), healthTone(p.Health)}
	case p.Health == local.HealthReady:
		return cell{"program " + string(w.Health), healthTone(w.Health)}
	}
	worst := healthTone(p.Health)
	if healthTone(w.Health) == red {
		worst = red
	}
	return cell{"proxy " + string(p.Health) + ", program " + string(w.Health), worst}
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
	t.optional = 1 // who a workload is can be read elsewhere, too
	s.ui.table(t)
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

// ago says when something was: "8s ago", "just now".
func ago(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case now.Sub(t) < time.Second:
		return "just now"
	}
	return since(now, t) + " ago"
}

// left says how long something is good for: "23h left".
func left(now, t time.Time) string {
	if t.After(now) {
		return until(now, t) + " left"
	}
	return until(now, t)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
