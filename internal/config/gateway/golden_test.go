package gateway_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/golden/manifests"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// TestGolden translates the files of each archive; the gateways, the routings, the statuses and every diagnostic must be as
// the archive says.
func TestGolden(t *testing.T) {
	golden.Run(t, "testdata", func(_ *testing.T, in *golden.Archive) map[string][]byte {
		cfg, out := manifests.Translate(in)
		out.Put("model", golden.Dump(excerpt(cfg)))
		out.Put("status", statuses(cfg.Statuses))
		return out
	})
}

// made is what this dialect puts into a model.
type made struct {
	Gateways  []model.Gateway
	Routings  []model.Routing
	Outside   []model.Service
	Originate []originate
	Secrets   []string
}

type originate struct {
	Port string
	TLS  *plan.ClientTLS
}

func excerpt(cfg *model.Config) made {
	out := made{Gateways: cfg.Gateways, Routings: cfg.Routings}
	for _, s := range cfg.Services {
		if s.External {
			out.Outside = append(out.Outside, s)
		}
		for _, p := range s.Ports {
			if p.Originate != nil {
				out.Originate = append(out.Originate, originate{fmt.Sprintf("%s:%d", s.Name, p.Port), p.Originate})
			}
		}
	}
	for _, s := range cfg.Secrets {
		if strings.Contains(s.Meta.Name.Name, ":") {
			out.Secrets = append(out.Secrets, s.Secret.Name)
		}
	}
	return out
}

// statuses writes one line for each condition.
func statuses(list []model.Status) string {
	var b strings.Builder
	conditions := func(indent string, list []model.Condition) {
		for _, c := range list {
			fmt.Fprintf(&b, "%s%s: %v %s", indent, c.Type, c.Status, c.Reason)
			if c.Message != "" {
				fmt.Fprintf(&b, " (%s)", c.Message)
			}
			b.WriteByte('\n')
		}
	}
	for _, s := range list {
		fmt.Fprintf(&b, "%s %s", s.Kind, s.Name)
		if s.Generation != 0 {
			fmt.Fprintf(&b, " generation %d", s.Generation)
		}
		if s.ListenerSets != 0 {
			fmt.Fprintf(&b, ", %d ListenerSets", s.ListenerSets)
		}
		if len(s.Features) > 0 {
			fmt.Fprintf(&b, ", %d features", len(s.Features))
		}
		b.WriteByte('\n')
		conditions("  ", s.Conditions)
		for _, l := range s.Listeners {
			fmt.Fprintf(&b, "  listener %s: %d routes of %s\n", l.Name, l.Routes, strings.Join(l.Kinds, ", "))
			conditions("    ", l.Conditions)
		}
		for _, p := range s.Parents {
			fmt.Fprintf(&b, "  parent %s\n", p.Ref)
			conditions("    ", p.Conditions)
		}
	}
	return b.String()
}
