// Package match holds the string conditions that rules are made of: the value that a plan carries and its
// evaluation, so that the router, the authorizer and the tools that explain them agree by construction.
//
// It is pure. A String is data; a Matcher is the same condition made ready to run, built once for each plan.
package match

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// Kind says how a String compares.
type Kind uint8

// The kinds. The zero Kind matches nothing, so that a forgotten condition fails closed.
const (
	Never    Kind = iota
	Exact         // the whole value
	Prefix        // the start of the value, as plain bytes
	Suffix        // the end of the value
	Regex         // RE2, must match the whole value
	Present       // any value, also an empty one, that is there
	NonEmpty      // any value of at least one byte ("*" in AuthorizationPolicy)
	Segment       // a path prefix that ends at a '/' boundary (Gateway API PathPrefix)
)

var kindNames = [...]string{"never", "exact", "prefix", "suffix", "regex", "present", "nonEmpty", "segment"}

// String returns the name of the kind.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "never"
}

// MarshalText writes the name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a name that MarshalText wrote.
func (k *Kind) UnmarshalText(b []byte) error {
	for i, n := range kindNames {
		if n == string(b) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("unknown match kind %q", b)
}

// String is one condition on one value.
type String struct {
	Kind       Kind   `json:"kind" plan:"1"`
	Value      string `json:"value,omitempty" plan:"2"`
	IgnoreCase bool   `json:"ignoreCase,omitempty" plan:"3"` // ASCII case; Exact, Prefix and Suffix only
}

// String returns the condition as explain prints it: exact "/a".
func (s String) String() string {
	if s.Kind == Present || s.Kind == NonEmpty || s.Kind == Never {
		return s.Kind.String()
	}
	return fmt.Sprintf("%s %q", s.Kind, s.Value)
}

// MaxRegex is the longest regular expression accepted, in bytes. RE2 runs in linear time; this bounds memory.
const MaxRegex = 1024

// Matcher is a String made ready to run. The zero Matcher matches nothing.
type Matcher struct {
	value string
	re    *regexp.Regexp
	kind  Kind
	fold  bool
	made  bool // by Compile
}

// Compile makes s ready to run. The error says what is wrong with a regular expression.
func (s String) Compile() (Matcher, error) {
	m := Matcher{kind: s.Kind, value: s.Value, fold: s.IgnoreCase, made: true}
	if s.Kind != Regex {
		if m.fold {
			m.value = strings.ToLower(m.value)
		}
		return m, nil
	}
	if len(s.Value) > MaxRegex {
		return Matcher{}, fmt.Errorf("regular expression of %d bytes: at most %d are accepted", len(s.Value), MaxRegex)
	}
	if _, err := syntax.Parse(s.Value, syntax.Perl); err != nil { // alone first: "a)(b" must not become valid by the anchors
		return Matcher{}, fmt.Errorf("regular expression %q: %w", s.Value, err)
	}
	if n := programSize(s.Value); n > MaxProgram {
		return Matcher{}, fmt.Errorf("regular expression %q makes a program of about %d instructions: at most %d are accepted", s.Value, n, MaxProgram)
	}
	re, err := regexp.Compile(`\A(?:` + s.Value + `)\z`)
	if err != nil {
		return Matcher{}, fmt.Errorf("regular expression %q: %w", s.Value, err)
	}
	m.re = re
	return m, nil
}

// IsZero reports whether m was not made by Compile: there is no condition, not even one that matches nothing.
func (m *Matcher) IsZero() bool { return !m.made }

// Match reports whether v satisfies the condition. It does not allocate, regular expressions apart.
func (m *Matcher) Match(v []byte) bool {
	switch m.kind {
	case Exact:
		return len(v) == len(m.value) && m.equal(v, m.value)
	case Prefix:
		return len(v) >= len(m.value) && m.equal(v[:len(m.value)], m.value)
	case Suffix:
		return len(v) >= len(m.value) && m.equal(v[len(v)-len(m.value):], m.value)
	case Segment:
		p := strings.TrimSuffix(m.value, "/")
		return len(v) >= len(p) && m.equal(v[:len(p)], p) && (len(v) == len(p) || v[len(p)] == '/')
	case Regex:
		return m.re.Match(v)
	case Present:
		return true
	case NonEmpty:
		return len(v) > 0
	default:
		return false
	}
}

func (m *Matcher) equal(v []byte, want string) bool {
	if !m.fold {
		return string(v) == want
	}
	for i := range len(want) {
		c := v[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != want[i] {
			return false
		}
	}
	return true
}

// Literal returns what m was made of, its value in lower case where fold ignores that: for indexes over many matchers, and those who
// explain.
func (m *Matcher) Literal() (value string, kind Kind, fold bool) { return m.value, m.kind, m.fold }

// HasCTL reports whether b has a control byte; names and values of rules never do.
func HasCTL(b []byte) bool {
	return bytes.ContainsFunc(b, func(r rune) bool { return r < 0x20 || r == 0x7f })
}
