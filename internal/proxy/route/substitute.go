package route

import (
	"fmt"
	"regexp"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// maxSubstituted bounds what a substitution may make of a path, in bytes: an expression that matches everywhere multiplies.
const maxSubstituted = 16 << 10

// substitution replaces every match of a regular expression (RE2::GlobalReplace, as Envoy's regex_rewrite).
type substitution struct {
	re    *regexp.Regexp
	parts []part
}

// part is literal bytes followed by a group; group -1 is none.
type part struct {
	literal string
	group   int
}

// newSubstitution checks and prepares an expression and what replaces it, in which \0 is the whole match, \1 to \9 are
// groups and \\ is a backslash.
func newSubstitution(regex, by string) (*substitution, error) {
	if len(regex) > match.MaxRegex {
		return nil, fmt.Errorf("rewrite: regular expression of %d bytes: at most %d are accepted", len(regex), match.MaxRegex)
	}
	re, err := regexp.Compile(regex)
	if err != nil {
		return nil, fmt.Errorf("rewrite: regular expression %q: %w", regex, err)
	}
	s := &substitution{re: re}
	literal := []byte(nil)
	for i := 0; i < len(by); i++ {
		if by[i] != '\\' {
			literal = append(literal, by[i])
			continue
		}
		if i++; i == len(by) {
			return nil, fmt.Errorf("rewrite: substitution %q ends in a lone backslash: write \\\\ for one", by)
		}
		switch c := by[i]; {
		case c == '\\':
			literal = append(literal, '\\')
		case c >= '0' && c <= '9':
			if n := int(c - '0'); n > re.NumSubexp() {
				return nil, fmt.Errorf("rewrite: substitution %q names group %d, and %q has %d", by, n, regex, re.NumSubexp())
			}
			s.parts = append(s.parts, part{string(escape(string(literal))), int(c - '0')})
			literal = literal[:0]
		default:
			return nil, fmt.Errorf("rewrite: substitution %q: \\%c is nothing: write \\0 to \\9 for a group, \\\\ for a backslash", by, c)
		}
	}
	if len(literal) > 0 {
		s.parts = append(s.parts, part{string(escape(string(literal))), -1})
	}
	return s, nil
}

// append appends what becomes of path. It reports false when that is not a canonical path, or too long. It allocates:
// only rules with an expression pay for it.
func (s *substitution) append(dst, path []byte) ([]byte, bool) {
	start, done := len(dst), 0
	for _, m := range s.re.FindAllSubmatchIndex(path, -1) {
		dst = append(dst, path[done:m[0]]...)
		for _, p := range s.parts {
			dst = append(dst, p.literal...)
			if p.group >= 0 && m[2*p.group] >= 0 {
				dst = append(dst, path[m[2*p.group]:m[2*p.group+1]]...)
			}
		}
		if done = m[1]; len(dst)-start > maxSubstituted {
			return dst, false
		}
	}
	dst = append(dst, path[done:]...)
	if len(dst)-start > maxSubstituted {
		return dst, false
	}
	canonical, err := message.CanonicalPath(dst[start:])
	return dst, err == nil && len(canonical) == len(dst)-start
}
