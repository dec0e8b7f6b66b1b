package match

import (
	"regexp/syntax"
	"strings"
	"testing"
)

// TestProgramSize holds the estimate to what the compiler makes, within a factor.
func TestProgramSize(t *testing.T) {
	for _, s := range []string{
		"", "abc", "a|b|c", "[a-z]+", "(a)(b)", "a{10}", "(ab){3,9}", "x{100,}", "(a{10}){10}", `/v[0-9]+/.*`, `\p{L}{50}`, "(?:a?){50}", "a*b+c?",
	} {
		re, err := syntax.Parse(s, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		p, err := syntax.Compile(re.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := programSize(s), len(p.Inst); got > 20*want+20 || want > 3*got+20 {
			t.Errorf("%q: about %d, is %d", s, got, want)
		}
	}
}

func TestLargePrograms(t *testing.T) {
	for s, ok := range map[string]bool{
		"[a-z0-9.-]{1,253}": true, "x{1000}": true, "(x{100}){10}": true, strings.Repeat("(?:ab|cd)", 100): true,
		strings.Repeat("x{1000}", 20): false, strings.Repeat(`(?:\pL{500}){2}`, 20): false, strings.Repeat("x", MaxRegex+1): false,
	} {
		if _, err := (String{Kind: Regex, Value: s}).Compile(); (err == nil) != ok {
			t.Errorf("%.30q: %v", s, err)
		}
	}
}
