package manifest

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Milli is a Kubernetes Quantity that is not negative, in thousandths: "500m" is 500, 90 is 90000.
type Milli uint32

// UnmarshalJSON reads what the schema has checked.
func (m *Milli) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := parseMilli(s)
	*m = v
	return err
}

// parseMilli reads the decimal quantities that stand for a share: digits, a fraction, and the suffixes m, k and M.
// (Kubernetes' own parser takes exponents too, in time and memory that grow with their value.)
func parseMilli(s string) (Milli, error) {
	digits, scale := strings.TrimPrefix(s, "+"), 1000.0
	for suffix, f := range map[string]float64{"m": 1, "k": 1e6, "M": 1e9} {
		if d, ok := strings.CutSuffix(digits, suffix); ok {
			digits, scale = d, f
		}
	}
	if digits == "" || len(digits) > 16 || strings.Trim(digits, "0123456789.") != "" {
		return 0, fmt.Errorf("%q is not a quantity of at least 0", s)
	}
	v, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a quantity", s)
	}
	v = math.Ceil(v * scale) // Kubernetes rounds up to the next thousandth
	if v > math.MaxUint32 {
		return 0, fmt.Errorf("%s is too large: at most %d", s, math.MaxUint32/1000)
	}
	return Milli(v), nil
}
