// Package document changes objects in files: streams of YAML or JSON in, the same streams out, with JSON patches applied to
// some of their objects. What is not changed stays as it was, byte for byte; in a document that is changed, comments and the order
// of fields stay. It is pure.
package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/inject"
)

// Limits on a stream, for input nobody vouches for.
const (
	MaxBytes = 64 << 20
	maxNodes = 1_000_000 // of a document, aliases counted as often as they are used
	maxDepth = 200
)

// Edit is asked about each object, in JSON, and returns what to change in it; nil is nothing.
type Edit func(object []byte) (inject.Patch, error)

// Stream applies edits to a stream of documents. Objects of a List are asked about one by one.
func Stream(in []byte, edit Edit) ([]byte, error) {
	if len(in) > MaxBytes {
		return nil, fmt.Errorf("the file has %d bytes; at most %d are read", len(in), MaxBytes)
	}
	var out bytes.Buffer
	line := 1
	for _, part := range split(in) {
		changed, err := document(part, edit)
		if err != nil {
			return nil, fmt.Errorf("the document at line %d: %w", line, err)
		}
		line += bytes.Count(part, []byte("\n"))
		out.Write(changed)
	}
	return out.Bytes(), nil
}

// split returns documents and the separators between them, as they are.
func split(in []byte) [][]byte {
	var parts [][]byte
	start, at := 0, 0
	for text := range bytes.Lines(in) {
		end := at + len(text)
		if bytes.HasPrefix(text, []byte("---")) && (len(bytes.TrimSpace(text)) == 3 || text[3] == ' ' && bytes.HasPrefix(bytes.TrimSpace(text[3:]), []byte("#"))) {
			if at > start {
				parts = append(parts, in[start:at])
			}
			parts = append(parts, in[at:end])
			start = end
		}
		at = end
	}
	return append(parts, in[start:])
}

// document returns a document with its edits.
func document(text []byte, edit Edit) ([]byte, error) {
	isJSON := json.Valid(text)
	root, err := parse(text, isJSON)
	if err != nil || root == nil {
		return text, err
	}
	e := &editor{open: map[*yaml.Node]bool{}}
	expanded, err := e.expand(root.Content[0], 0)
	if err != nil {
		return nil, err
	}
	root.Content[0] = expanded
	changed, err := apply(expanded, edit)
	if err != nil || !changed {
		return text, err
	}
	if isJSON {
		return writeJSON(expanded, text)
	}
	return writeYAML(root, text)
}

// parse returns the document; nil when it holds nothing but comments.
func parse(text []byte, isJSON bool) (root *yaml.Node, err error) {
	if isJSON {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		n, err := readJSON(d, 0)
		if err != nil {
			return nil, err
		}
		return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{n}}, nil
	}
	defer func() { // should a panic of the library escape, it is an error about the file
		if r := recover(); r != nil {
			root, err = nil, fmt.Errorf("it is not valid YAML: %v", r)
		}
	}()
	root = new(yaml.Node)
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(root); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("it is not valid YAML: %w", err)
	}
	var more yaml.Node
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is a second document without a line --- of its own before it")
	}
	if len(root.Content) == 0 || root.Content[0].ShortTag() == "!!null" {
		return nil, nil
	}
	return root, nil
}

// apply asks about an object, or the objects of a List.
func apply(n *yaml.Node, edit Edit) (changed bool, err error) {
	if n.Kind != yaml.MappingNode {
		return false, errors.New("it is not an object: a manifest starts with apiVersion, kind and metadata")
	}
	if items, kind := get(n, "items"), get(n, "kind"); items != nil && items.Kind == yaml.SequenceNode && kind != nil && strings.HasSuffix(kind.Value, "List") {
		for _, item := range items.Content {
			c, err := apply(item, edit)
			if err != nil {
				return false, err
			}
			changed = changed || c
		}
		return changed, nil
	}
	v, err := value(n)
	if err != nil {
		return false, err
	}
	object, err := json.Marshal(v)
	if err != nil {
		return false, fmt.Errorf("it can't be written as JSON: %w", err)
	}
	p, err := edit(object)
	if err != nil {
		return false, err
	}
	for _, op := range p {
		if err := Apply(n, op); err != nil {
			return false, err
		}
	}
	return len(p) > 0, nil
}

// sequence finds a list below a key, to see how lists are indented.
var sequence = regexp.MustCompile(`(?m)^( *)[^\s#-][^\n]*:[ \t]*\n( *)- `)

func writeYAML(root *yaml.Node, like []byte) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if m := sequence.FindSubmatch(like); m == nil || len(m[1]) == len(m[2]) {
		e.CompactSeqIndent()
	}
	if err := e.Encode(root); err != nil {
		return nil, fmt.Errorf("it can't be written as YAML: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("it can't be written as YAML: %w", err)
	}
	return b.Bytes(), nil
}
