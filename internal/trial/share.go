package trial

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/explain"
)

// Share is an expected percentage with what it may be off by: 10, "10 %", "10 ± 2", "10 +- 2".
type Share struct {
	Percent, Tolerance float64
}

// Percentage is an expected percentage; it is written as a Share.
type Percentage = Share

// slack is what rounding may make of a share, in per cent.
const slack = 1e-6

// UnmarshalJSON reads a number or a text.
func (s *Share) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &s.Percent); err == nil {
		return s.check()
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("%s is not a share", b)
	}
	plain := strings.ReplaceAll(strings.ReplaceAll(text, "+-", "±"), "%", "")
	percent, tolerance, _ := strings.Cut(plain, "±")
	var err error
	if s.Percent, err = strconv.ParseFloat(strings.TrimSpace(percent), 64); err == nil && strings.Contains(plain, "±") {
		s.Tolerance, err = strconv.ParseFloat(strings.TrimSpace(tolerance), 64)
	}
	if err != nil {
		return fmt.Errorf("%q is not a share", text)
	}
	return s.check()
}

func (s *Share) check() error {
	if !(s.Percent >= 0 && s.Percent <= 100 && s.Tolerance >= 0) {
		return fmt.Errorf("a share is from 0 to 100 per cent")
	}
	return nil
}

// Holds reports whether a percentage is what is expected.
func (s Share) Holds(percent float64) bool {
	return math.Abs(percent-s.Percent) <= s.Tolerance+slack
}

func (s Share) String() string {
	text := number(s.Percent) + " %"
	if s.Tolerance > 0 {
		text += " ± " + number(s.Tolerance)
	}
	return text
}

func number(f float64) string {
	return strconv.FormatFloat(math.Round(f*100)/100, 'f', -1, 64)
}

func sortHeaders(hs []explain.Header) {
	slices.SortFunc(hs, func(a, b explain.Header) int { return strings.Compare(a.Name, b.Name) })
}
