package ctl

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// TestSARIF checks what the schema of SARIF 2.1.0 asks of a log: what must be there, levels, kinds and indexes that fit.
func TestSARIF(t *testing.T) {
	at := ident.Origin{Kind: "Service", Namespace: "default", Name: "web", File: "my mesh/a.yaml", Line: 3}
	all := []finding{
		{Diagnostic: model.Diagnostic{Code: "MALHA0801", Severity: model.Error, Origin: at, Message: "m", Hint: "h"}, Page: "https://x/#a"},
		{Diagnostic: model.Diagnostic{Code: "MALHA0831", Severity: model.Info, Message: "m"}, Page: "https://x/#b", Suppressed: "flag"},
		{Diagnostic: model.Diagnostic{Code: "MALHA0801", Severity: model.Error, Origin: ident.Origin{File: "/abs/a.yaml"}, Message: "m"}, Suppressed: "annotation"},
		{Diagnostic: model.Diagnostic{Code: "MALHA0810", Severity: model.Warning, Message: "m"}},
	}
	b, err := json.Marshal(sarif(all, "v1"))
	if err != nil {
		t.Fatal(err)
	}
	var log struct {
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct {
					Name  string
					Rules []struct{ ID string }
				}
			}
			Results []struct {
				RuleID    string
				RuleIndex int
				Level     string
				Message   struct{ Text string }
				Locations []struct {
					PhysicalLocation *struct {
						ArtifactLocation struct{ URI string }
						Region           *struct{ StartLine int }
					}
				}
				Suppressions []struct{ Kind string }
			}
		}
	}
	if err := json.Unmarshal(b, &log); err != nil {
		t.Fatal(err)
	}
	if log.Version != "2.1.0" || len(log.Runs) != 1 || log.Runs[0].Tool.Driver.Name == "" || len(log.Runs[0].Results) != len(all) {
		t.Fatalf("%s", b)
	}
	run := log.Runs[0]
	if len(run.Tool.Driver.Rules) != 3 {
		t.Errorf("%d rules, want one for each code", len(run.Tool.Driver.Rules))
	}
	for i, r := range run.Results {
		if run.Tool.Driver.Rules[r.RuleIndex].ID != r.RuleID || r.Message.Text == "" {
			t.Errorf("result %d: rule %d is not %s", i, r.RuleIndex, r.RuleID)
		}
		if want := []string{"error", "note", "error", "warning"}[i]; r.Level != want {
			t.Errorf("result %d: level %s, want %s", i, r.Level, want)
		}
		kinds := []string{}
		for _, s := range r.Suppressions {
			kinds = append(kinds, s.Kind)
		}
		if want := [][]string{{}, {"external"}, {"inSource"}, {}}[i]; !slices.Equal(kinds, want) {
			t.Errorf("result %d: suppressions %v, want %v", i, kinds, want)
		}
	}
	first, third := run.Results[0].Locations[0].PhysicalLocation, run.Results[2].Locations[0].PhysicalLocation
	if first.ArtifactLocation.URI != "my%20mesh/a.yaml" || first.Region.StartLine != 3 {
		t.Errorf("the first location is %+v", first)
	}
	if third.ArtifactLocation.URI != "file:///abs/a.yaml" || third.Region != nil {
		t.Errorf("the third location is %+v", third)
	}
	if run.Results[1].Locations != nil {
		t.Errorf("a location of nowhere")
	}
}
