package gatewayapi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTabulate(t *testing.T) {
	dir := t.TempDir()
	report, page := filepath.Join(dir, "report.yaml"), filepath.Join(dir, "page.md")
	for name, text := range map[string]string{
		report: `gatewayAPIVersion: v1.6.3
gatewayAPIChannel: experimental
profiles:
- name: GATEWAY-HTTP
  core: {result: success, statistics: {Passed: 36}}
  extended: {result: failure, statistics: {Passed: 50, Failed: 1}, supportedFeatures: [A, B], unsupportedFeatures: [C]}
- name: MESH-GRPC
  core: {result: partial, statistics: {Passed: 1, Skipped: 1}}
`,
		page: "before\n" + begin + "old\n" + end + "after\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := tabulate(report, page); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"before\n" + begin + "Gateway API v1.6.3, experimental channel.\n", "| GATEWAY-HTTP | 36 of 36 | 50 of 51 | 2 of 3 |\n", "| MESH-GRPC | 1 of 2 | none | none |\n" + end + "after\n",
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s\nlacks %q", got, want)
		}
	}
	if strings.Contains(string(got), "old") {
		t.Errorf("the old results are still there: %s", got)
	}
	if err := tabulate(report, report); err == nil {
		t.Error("a page without a place is written")
	}
}
