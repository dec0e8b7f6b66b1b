package manifest

import (
	"maps"
	"math"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/model"
)

// FromValue reads an object that did not come as text: what JSON decodes to (maps, slices, strings, booleans, numbers). source
// stands for the file in diagnostics, and no line does. From there on it is an object as any other.
func FromValue(source string, value map[string]any) (Object, []model.Diagnostic) {
	p := parser{file: source}
	p.document(Node(value))
	ds := p.report.Diagnostics()
	if len(p.objects) != 1 {
		return Object{}, ds
	}
	o := p.objects[0]
	o.Origin.Line = 0
	return o, ds
}

// Node returns what JSON decodes to as a YAML tree without lines.
func Node(value any) *yaml.Node {
	scalar := func(tag, text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text} }
	switch v := value.(type) {
	case nil:
		return scalar("!!null", "null")
	case string:
		return scalar("!!str", v)
	case bool:
		return scalar("!!bool", strconv.FormatBool(v))
	case int64:
		return scalar("!!int", strconv.FormatInt(v, 10))
	case int:
		return scalar("!!int", strconv.Itoa(v))
	case int32:
		return scalar("!!int", strconv.FormatInt(int64(v), 10))
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 { // some decoders know only floats
			return scalar("!!int", strconv.FormatInt(int64(v), 10))
		}
		return scalar("!!float", strconv.FormatFloat(v, 'g', -1, 64))
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: make([]*yaml.Node, len(v))}
		for i := range v {
			n.Content[i] = Node(v[i])
		}
		return n
	case map[string]any:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: make([]*yaml.Node, 0, 2*len(v))}
		for _, k := range sortedKeys(v) {
			n.Content = append(n.Content, scalar("!!str", k), Node(v[k]))
		}
		return n
	case map[string]string:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: make([]*yaml.Node, 0, 2*len(v))}
		for _, k := range sortedKeys(v) {
			n.Content = append(n.Content, scalar("!!str", k), scalar("!!str", v[k]))
		}
		return n
	}
	return scalar("!!null", "null") // JSON has nothing else
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Kubernetes is the source of objects that an API server has.
const Kubernetes = "kubernetes"

// Same reports whether two objects say the same, wherever they were written.
func (o *Object) Same(p *Object) bool {
	return o.APIVersion == p.APIVersion && o.Kind == p.Kind && o.Name == p.Name && o.Generation == p.Generation && o.UID == p.UID &&
		o.Created.Equal(p.Created) && sameNode(o.Node, p.Node)
}

func sameNode(a, b *yaml.Node) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Kind == b.Kind && a.Tag == b.Tag && a.Value == b.Value && slices.EqualFunc(a.Content, b.Content, sameNode)
}
