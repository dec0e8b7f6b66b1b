package gateway

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/pkg/features"
)

const (
	begin = "<!-- features: go test ./internal/config/gateway -run Features -update-schemas -->\n"
	end   = "<!-- end of features -->\n"
)

// TestFeaturesAreThoseOfTheModule holds that every feature of the Gateway API is either claimed or said to be missing, and that
// docs/gateway-api.md says the same.
func TestFeaturesAreThoseOfTheModule(t *testing.T) {
	channel := map[string]string{}
	for _, f := range features.AllFeatures.UnsortedList() {
		channel[string(f.Name)] = string(f.Channel)
	}
	claimed := Features()
	for _, f := range claimed {
		if channel[f] == "" {
			t.Errorf("%s is no feature of the Gateway API", f)
		}
		if unsupported[f] != "" {
			t.Errorf("%s is claimed and said to be missing", f)
		}
	}
	for _, f := range slices.Sorted(maps.Keys(channel)) {
		if !slices.Contains(claimed, f) && unsupported[f] == "" {
			t.Errorf("nothing is said of the feature %s", f)
		}
	}
	var b strings.Builder
	b.WriteString(begin + "| feature | channel | |\n|---|---|---|\n")
	for _, f := range slices.Sorted(maps.Keys(channel)) {
		says := "yes"
		if why := unsupported[f]; why != "" {
			says = "no: " + why
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f, channel[f], says)
	}
	b.WriteString(end)
	const file = "../../../docs/gateway-api.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table of features", file)
	}
	if want := head + b.String() + tail; want != string(page) {
		if *updateSchemas {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Errorf("the features in %s are not those of the code; run: go test ./internal/config/gateway -run Features -update-schemas", file)
	}
}
