package authz

import (
	"math/rand/v2"
	"testing"

	"github.com/malha-mesh/malha/internal/plan"
)

// TestExplainAgreesWithCheck wants of Explain that its steps lead to the decision of Check, on random policies, and that
// each rule that does not match has a reason.
func TestExplainAgreesWithCheck(t *testing.T) {
	for seed := range 3000 {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 13))}
		e := mustBuild(t, g.policies()...)
		for range 5 {
			in := g.input()
			steps, d := e.Explain(in), e.Check(in)
			guarded, by, rule, denied := false, "", -1, false
			for _, s := range steps {
				if !s.Matched && len(s.Reasons) == 0 {
					t.Fatalf("seed %d: %s does not match, without a reason", seed, s.Policy)
				}
				switch {
				case s.DryRun || s.Action == plan.Audit:
				case s.Action == plan.Deny:
					denied = denied || s.Matched
					fallthrough
				default:
					guarded = guarded || s.Action == plan.Allow
					if s.Matched {
						by, rule = s.Policy, s.Rule
					}
				}
			}
			allow := !denied && (!guarded || by != "")
			if allow != d.Allow || by != d.Policy || rule != d.Rule {
				t.Fatalf("seed %d: the steps say %v by %q rule %d, Check says %v by %q rule %d", seed, allow, by, rule, d.Allow, d.Policy, d.Rule)
			}
		}
	}
}
