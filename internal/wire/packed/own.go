package packed

import "strings"

// Own gives strings memory of their own. Those of what was opened are parts of its encoding: one that outlives the plan would keep all
// of that alive, and many that came with many plans as many encodings.
func Own(parts ...*string) {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(*p)
	}
	rest := b.String()
	for _, p := range parts {
		*p, rest = rest[:len(*p)], rest[len(*p):]
	}
}
