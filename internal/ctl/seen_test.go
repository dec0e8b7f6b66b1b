package ctl

import "testing"

func TestSeen(t *testing.T) {
	for text, want := range map[string]int{"": 0, "größe": 5, "gro\u0308ße": 5, "評価": 4, "カナ": 4, "한글": 4, "ｆｕｌｌ": 8, "🚀": 2, "a→b…": 4, "✓": 1, "a\u200db": 2} {
		if got := seen(text); got != want {
			t.Errorf("%q takes %d columns, want %d", text, got, want)
		}
	}
}
