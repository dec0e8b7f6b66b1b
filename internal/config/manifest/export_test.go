package manifest

import (
	"fmt"
	"strings"
)

// Sample returns a value of t, as YAML in flow style, in which nothing but the field at path is set.
func (t *Type) Sample(path string) string {
	switch t.shape {
	case object:
		if path == "" {
			return "{}"
		}
		path = strings.TrimPrefix(path, ".")
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		name := path[:end]
		return fmt.Sprintf("{%s: %s}", name, t.fields[name].typ.Sample(path[end:]))
	case list, oneOrMany:
		return "[" + t.elem.Sample(strings.TrimPrefix(path, "[]")) + "]"
	case mapping:
		return "{1: " + t.elem.Sample(strings.TrimPrefix(path, "[]")) + "}"
	case boolean:
		return "true"
	case integer, number, intOrText, quantity:
		return "7"
	case enumeration:
		return t.enum[len(t.enum)-1]
	case duration:
		return "7s"
	case base64Bytes:
		return "Nw=="
	case anything:
		return "{a: b}"
	}
	return "text"
}
