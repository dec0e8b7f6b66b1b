package inject

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Op is one operation of a JSON patch (RFC 6902): "add", "remove" or "replace".
type Op struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Patch is operations in their order.
type Patch []Op

// pointer joins the tokens of a JSON pointer (RFC 6901 section 3).
func pointer(tokens ...any) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteByte('/')
		switch t := t.(type) {
		case int:
			b.WriteString(strconv.Itoa(t))
		default:
			b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(fmt.Sprint(t)))
		}
	}
	return b.String()
}

func (p *Patch) add(value any, tokens ...any) { *p = append(*p, Op{"add", pointer(tokens...), value}) }

func (p *Patch) remove(tokens ...any) { *p = append(*p, Op{Op: "remove", Path: pointer(tokens...)}) }

// Below returns the patch for an object that holds the patched one at a path, such as "/spec/template".
func (p Patch) Below(path string) Patch {
	out := make(Patch, len(p))
	for i, op := range p {
		out[i] = Op{op.Op, path + op.Path, op.Value}
	}
	return out
}

// JSON returns the patch as an AdmissionResponse carries it.
func (p Patch) JSON() ([]byte, error) {
	if p == nil {
		p = Patch{}
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	return b, nil
}
