package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/inject"
)

// Apply makes one operation of a JSON patch in an object.
func Apply(root *yaml.Node, op inject.Op) error {
	tokens := strings.Split(strings.TrimPrefix(op.Path, "/"), "/")
	for i := range tokens {
		tokens[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(tokens[i])
	}
	parent := root
	for _, t := range tokens[:len(tokens)-1] {
		if parent = child(parent, t); parent == nil {
			return fmt.Errorf("%s %s: there is no %s", op.Op, op.Path, t)
		}
	}
	last := tokens[len(tokens)-1]
	switch parent.Kind {
	case yaml.MappingNode:
		return member(parent, last, op)
	case yaml.SequenceNode:
		return element(parent, last, op)
	}
	return fmt.Errorf("%s %s: the value above is neither an object nor a list", op.Op, op.Path)
}

func member(parent *yaml.Node, key string, op inject.Op) error {
	at := -1
	for i := 0; i+1 < len(parent.Content); i += 2 {
		if parent.Content[i].Value == key {
			at = i
		}
	}
	switch {
	case op.Op == "remove" && at >= 0:
		parent.Content = slices.Delete(parent.Content, at, at+2)
		return nil
	case at < 0 && op.Op != "add":
		return fmt.Errorf("%s %s: there is no such field", op.Op, op.Path)
	case at >= 0:
		n := toNode(op.Value)
		n.HeadComment, n.LineComment, n.FootComment = parent.Content[at+1].HeadComment, parent.Content[at+1].LineComment, parent.Content[at+1].FootComment
		parent.Content[at+1] = n
		return nil
	}
	unfold(parent)
	parent.Content = append(parent.Content, text(key), toNode(op.Value))
	return nil
}

func element(parent *yaml.Node, token string, op inject.Op) error {
	i, err := strconv.Atoi(token)
	if token == "-" && op.Op == "add" {
		i, err = len(parent.Content), nil
	}
	last := len(parent.Content) - 1
	if op.Op == "add" {
		last++
	}
	if err != nil || i < 0 || i > last {
		return fmt.Errorf("%s %s: there is no such element", op.Op, op.Path)
	}
	switch op.Op {
	case "remove":
		parent.Content = slices.Delete(parent.Content, i, i+1)
	case "replace":
		parent.Content[i] = toNode(op.Value)
	default:
		unfold(parent)
		parent.Content = slices.Insert(parent.Content, i, toNode(op.Value))
	}
	return nil
}

// unfold lets an empty {} or [] grow over lines.
func unfold(n *yaml.Node) {
	if len(n.Content) == 0 {
		n.Style &^= yaml.FlowStyle
	}
}

func child(n *yaml.Node, token string) *yaml.Node {
	if n.Kind == yaml.MappingNode {
		return get(n, token)
	}
	if i, err := strconv.Atoi(token); n.Kind == yaml.SequenceNode && err == nil && i >= 0 && i < len(n.Content) {
		return n.Content[i]
	}
	return nil
}

func get(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// editor resolves aliases, counting what it makes.
type editor struct {
	nodes int
	open  map[*yaml.Node]bool // what is being expanded
}

// expand returns n without aliases and merge keys: a change in one place must not change another. What has none stays as it is.
func (e *editor) expand(n *yaml.Node, depth int) (*yaml.Node, error) {
	if e.nodes++; e.nodes > maxNodes || depth > maxDepth {
		return nil, errors.New("it has too many values, or they nest too deep")
	}
	switch n.Kind {
	case yaml.AliasNode:
		if e.open[n.Alias] {
			return nil, fmt.Errorf("alias *%s contains itself", n.Value)
		}
		out, err := e.expand(n.Alias, depth+1)
		if err != nil {
			return nil, err
		}
		return e.copied(out, depth)
	case yaml.SequenceNode:
		e.open[n] = true
		defer delete(e.open, n)
		for i, c := range n.Content {
			v, err := e.expand(c, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content[i] = v
		}
		n.Anchor = ""
	case yaml.MappingNode:
		e.open[n] = true
		defer delete(e.open, n)
		return n, e.mapping(n, depth)
	}
	n.Anchor = ""
	return n, nil
}

// copied makes a copy that shares no node.
func (e *editor) copied(n *yaml.Node, depth int) (*yaml.Node, error) {
	if e.nodes++; e.nodes > maxNodes || depth > maxDepth {
		return nil, errors.New("it has too many values, or they nest too deep")
	}
	c := *n
	c.Anchor = ""
	c.Content = make([]*yaml.Node, len(n.Content))
	for i := range n.Content {
		v, err := e.copied(n.Content[i], depth+1)
		if err != nil {
			return nil, err
		}
		c.Content[i] = v
	}
	return &c, nil
}

func (e *editor) mapping(n *yaml.Node, depth int) error {
	var merged []*yaml.Node
	content := n.Content
	n.Content, n.Anchor = nil, ""
	for i := 0; i+1 < len(content); i += 2 {
		key := content[i]
		v, err := e.expand(content[i+1], depth+1)
		switch {
		case err != nil:
			return err
		case key.ShortTag() == "!!merge" && v.Kind == yaml.SequenceNode:
			merged = append(merged, v.Content...)
		case key.ShortTag() == "!!merge":
			merged = append(merged, v)
		case key.Kind != yaml.ScalarNode:
			return errors.New("a key is not a plain word")
		case get(n, key.Value) != nil:
			return fmt.Errorf("key %q stands twice, again at line %d of the document", key.Value, key.Line)
		default:
			n.Content = append(n.Content, key, v)
		}
	}
	for _, m := range merged { // the mapping's own keys win, earlier merges over later ones
		if m.Kind != yaml.MappingNode {
			return errors.New("<< must name a mapping")
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if get(n, m.Content[i].Value) == nil {
				n.Content = append(n.Content, m.Content[i], m.Content[i+1])
			}
		}
	}
	return nil
}

// value returns a tree as JSON has it.
func value(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := value(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			out[n.Content[i].Value] = v
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i, c := range n.Content {
			v, err := value(c)
			if err != nil {
				return nil, err
			}
			out[i] = v
		}
		return out, nil
	}
	if tag := n.ShortTag(); tag == "!!str" || tag == "!!timestamp" {
		return n.Value, nil
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, fmt.Errorf("line %d of the document: %w", n.Line, err)
	}
	return v, nil
}

// toNode returns the nodes of a JSON value. A name comes first, as people write it.
func toNode(v any) *yaml.Node {
	switch v := v.(type) {
	case map[string]any:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		keys := slices.SortedFunc(maps.Keys(v), func(a, b string) int {
			if (a == "name") != (b == "name") {
				if a == "name" {
					return -1
				}
				return 1
			}
			return strings.Compare(a, b)
		})
		for _, k := range keys {
			n.Content = append(n.Content, text(k), toNode(v[k]))
		}
		return n
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, e := range v {
			n.Content = append(n.Content, toNode(e))
		}
		return n
	case string:
		return text(v)
	case float64:
		if v == float64(int64(v)) {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(int64(v), 10)}
		}
	}
	n := new(yaml.Node)
	if err := n.Encode(v); err != nil {
		n.SetString(fmt.Sprint(v)) // not reached: JSON's other values are booleans, numbers and null
	}
	return n
}

// text is a string, quoted where it would read as something else: also by parsers of YAML 1.1, as kubectl's.
func text(s string) *yaml.Node {
	n := new(yaml.Node)
	if err := n.Encode(s); err != nil {
		n.SetString(s)
	}
	return n
}

// readJSON reads a value with the order of its fields.
func readJSON(d *json.Decoder, depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, errors.New("it nests too deep")
	}
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("it is not valid JSON: %w", err)
	}
	delim, ok := t.(json.Delim)
	if !ok {
		n := new(yaml.Node)
		if num, ok := t.(json.Number); ok {
			tag := "!!int"
			if strings.ContainsAny(num.String(), ".eE") {
				tag = "!!float"
			}
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: num.String()}, nil
		}
		if s, ok := t.(string); ok {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}, nil
		}
		return n, n.Encode(t)
	}
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	if delim == '{' {
		n = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	}
	for d.More() {
		v, err := readJSON(d, depth+1)
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, v)
	}
	_, err = d.Token() // the closing one
	return n, err
}

// writeJSON writes a tree, indented when the original was.
func writeJSON(n *yaml.Node, like []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := appendJSON(&b, n); err != nil {
		return nil, err
	}
	end := like[len(bytes.TrimRight(like, " \t\r\n")):]
	if !bytes.Contains(bytes.TrimSpace(like), []byte("\n")) {
		return append(b.Bytes(), end...), nil
	}
	indent := "  "
	if i := bytes.IndexByte(like, '\n'); i >= 0 {
		rest := like[i+1:]
		if w := rest[:len(rest)-len(bytes.TrimLeft(rest, " \t"))]; len(w) > 0 {
			indent = string(w)
		}
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b.Bytes(), "", indent); err != nil {
		return nil, fmt.Errorf("it can't be written as JSON: %w", err)
	}
	return append(out.Bytes(), end...), nil
}

func appendJSON(b *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.MappingNode, yaml.SequenceNode:
		object := n.Kind == yaml.MappingNode
		open, end := byte('['), byte(']')
		if object {
			open, end = '{', '}'
		}
		b.WriteByte(open)
		for i, c := range n.Content {
			switch {
			case i == 0:
			case object && i%2 == 1:
				b.WriteByte(':')
			default:
				b.WriteByte(',')
			}
			if err := appendJSON(b, c); err != nil {
				return err
			}
		}
		b.WriteByte(end)
		return nil
	}
	if tag := n.ShortTag(); (tag == "!!int" || tag == "!!float") && json.Valid([]byte(n.Value)) {
		b.WriteString(n.Value) // as it was written
		return nil
	}
	v, err := value(n)
	if err != nil {
		return err
	}
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("it can't be written as JSON: %w", err)
	}
	b.Truncate(b.Len() - 1) // the newline that Encode adds
	return nil
}
