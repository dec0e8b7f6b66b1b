package gatewayapi

import (
	"fmt"
	"os"
	"slices"
	"strings"

	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/yaml"
)

const (
	begin = "<!-- conformance: make gateway-conformance -->\n"
	end   = "<!-- end of conformance -->\n"
)

// tabulate writes the results of a report into the place for them on a page.
func tabulate(report, page string) error {
	data, err := os.ReadFile(report)
	if err != nil {
		return err
	}
	var r confv1.ConformanceReport
	if err := yaml.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("%s: %w", report, err)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the results: %s", page, strings.TrimSpace(begin))
	}
	return os.WriteFile(page, []byte(head+begin+table(&r)+end+tail), 0o644)
}

func table(r *confv1.ConformanceReport) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Gateway API %s, %s channel.\n\n| profile | core tests | tests of extended features | extended features |\n|---|---|---|---|\n", r.GatewayAPIVersion, r.GatewayAPIChannel)
	byName := slices.SortedFunc(slices.Values(r.ProfileReports), func(a, b confv1.ProfileReport) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range byName {
		extended, claimed := "none", "none"
		if p.Extended != nil {
			extended = passed(p.Extended.Statistics)
			claimed = fmt.Sprintf("%d of %d", len(p.Extended.SupportedFeatures), len(p.Extended.SupportedFeatures)+len(p.Extended.UnsupportedFeatures))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", p.Name, passed(p.Core.Statistics), extended, claimed)
	}
	return b.String()
}

func passed(s confv1.Statistics) string {
	return fmt.Sprintf("%d of %d", s.Passed, s.Passed+s.Failed+s.Skipped)
}
