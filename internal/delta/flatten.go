package delta

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// flatten returns the values of a piece by path, "forward[outbound|80||web].weight", without names and origins.
func flatten(v any) (map[string]string, error) {
	if absent(v) {
		return nil, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		return nil, err
	}
	out := map[string]string{}
	walk(out, "", tree)
	delete(out, "name") // it is the change's, or for logs only
	return out, nil
}

func walk(out map[string]string, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if text, ok := matcher(v); ok {
			out[path] = text
			return
		}
		for k, x := range v {
			if k == "origin" || k == "tcpOrigin" {
				continue
			}
			if path == "" {
				walk(out, k, x)
			} else {
				walk(out, path+"."+k, x)
			}
		}
	case []any:
		names, key := elementNames(v)
		if path == "locality.priority" { // whose order decides
			out[path] = strings.Join(names, ", ")
			return
		}
		for i, x := range v {
			here := path + "[" + names[i] + "]"
			m, ok := x.(map[string]any)
			if !ok || key == "" {
				walk(out, here, x)
				continue
			}
			if len(m) == 1 {
				out[here] = "yes"
			}
			for k, inner := range m {
				if k != key {
					walk(out, here, map[string]any{k: inner})
				}
			}
		}
	case string:
		if path == "direct.body" {
			if b, err := base64.StdEncoding.DecodeString(v); err == nil { // as encoding/json writes bytes
				v = strconv.Quote(string(b))
			}
		}
		out[path] = v
	case float64:
		if path == "retry.on" {
			out[path] = strings.Join(plan.RetryOn(v).Names(), ",")
			return
		}
		out[path] = strconv.FormatFloat(v, 'f', -1, 64)
	default:
		out[path] = fmt.Sprint(v)
	}
}

// elementNames names the elements of a list: by what tells them apart, so that one that is new does not make all that
// follow seem different, else by their place. by is the field that names them; it is not told again.
func elementNames(list []any) (names []string, by string) {
	out := make([]string, len(list))
	for _, key := range []string{"cluster", "host", "port", "name", "key", "names"} {
		seen := map[string]bool{}
		for i, x := range list {
			m, _ := x.(map[string]any)
			if m[key] == nil {
				break
			}
			out[i] = strings.Trim(fmt.Sprint(m[key]), "[]")
			seen[out[i]] = true
		}
		if len(seen) == len(list) {
			return out, key
		}
	}
	if !slices.ContainsFunc(list, func(x any) bool { _, text := x.(string); return !text }) {
		for i, x := range list {
			out[i] = x.(string)
		}
		return out, ""
	}
	for i := range out {
		out[i] = strconv.Itoa(i)
	}
	return out, ""
}

// matcher spells a match.String as people read it.
func matcher(m map[string]any) (string, bool) {
	kind, ok := m["kind"].(string)
	if !ok {
		return "", false
	}
	text := kind
	for k, v := range m {
		switch {
		case k == "value":
			text = fmt.Sprintf("%s %q", kind, v)
		case k != "kind" && k != "ignoreCase":
			return "", false
		}
	}
	if m["ignoreCase"] == true {
		text += " in any case"
	}
	return text, true
}

// different returns the fields in which two pieces differ, by path.
func different(was, is map[string]string) []Field {
	var out []Field
	for path, v := range is {
		if old, ok := was[path]; !ok || old != v {
			out = append(out, Field{path, old, v})
		}
	}
	for path, v := range was {
		if _, ok := is[path]; !ok {
			out = append(out, Field{Path: path, Old: v})
		}
	}
	slices.SortFunc(out, func(a, b Field) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// absent reports whether v is nil or a nil pointer.
func absent(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	return r.Kind() == reflect.Pointer && r.IsNil()
}

// originOf returns the Origin field of a piece.
func originOf(v any) ident.Origin {
	if absent(v) {
		return ident.Origin{}
	}
	f := reflect.Indirect(reflect.ValueOf(v)).FieldByName("Origin")
	if !f.IsValid() {
		return ident.Origin{}
	}
	o, _ := f.Interface().(ident.Origin)
	return o
}
