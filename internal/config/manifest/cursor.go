package manifest

import (
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/ident"
)

// Cursor is a place in an object. Moving to a field that was not written keeps the path and the nearest line above it,
// so that "weight is missing" can still say where.
type Cursor struct {
	object *Object
	node   *yaml.Node // nil: not written
	path   string
	line   int
}

// Path returns the path of the field: "spec.http[0].route[1].weight".
func (c Cursor) Path() string { return c.path }

// Rule returns the path without its leading "spec.", the form of ident.Origin.Rule.
func (c Cursor) Rule() string { return strings.TrimPrefix(c.path, "spec.") }

// Line returns the 1-based line, 0 when the object came from nowhere.
func (c Cursor) Line() int { return c.line }

// Decode reads what was written here, without any default, into v; nothing when that is nothing.
func (c Cursor) Decode(v any) error {
	if !c.Set() {
		return nil
	}
	return c.node.Decode(v)
}

// Set reports whether the field was written with a value that is not null.
func (c Cursor) Set() bool { return c.node != nil && c.node.ShortTag() != "!!null" }

// Origin returns the object's origin at this place, with the place as its rule.
func (c Cursor) Origin() ident.Origin { return c.object.Origin.At(c.Rule(), c.line) }

// Field moves to a field by its JSON name; the snake_case spelling that protobuf also accepts is found too.
func (c Cursor) Field(name string) Cursor {
	next := Cursor{object: c.object, path: name, line: c.line}
	if c.path != "" {
		next.path = c.path + "." + name
	}
	if key, value := lookup(c.node, name); value != nil {
		next.node, next.line = value, key.Line
	}
	return next
}

// Key moves to an entry of a map, whose key is data.
func (c Cursor) Key(key string) Cursor {
	next := Cursor{object: c.object, path: c.path + "[" + key + "]", line: c.line}
	if c.node != nil && c.node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(c.node.Content); i += 2 {
			if k := c.node.Content[i]; k.Value == key {
				next.node, next.line = c.node.Content[i+1], k.Line
			}
		}
	}
	return next
}

// Index moves to an element of a list.
func (c Cursor) Index(i int) Cursor {
	next := Cursor{object: c.object, path: c.path + "[" + strconv.Itoa(i) + "]", line: c.line}
	if c.node != nil && c.node.Kind == yaml.SequenceNode && i < len(c.node.Content) {
		next.node, next.line = c.node.Content[i], c.node.Content[i].Line
	}
	return next
}

// lookup finds a field of a mapping under its JSON or its snake_case name.
func lookup(n *yaml.Node, name string) (key, value *yaml.Node) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i].Value; k == name || k == snake(name) {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// snake turns a JSON name into the protobuf field name it most often comes from.
func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}
