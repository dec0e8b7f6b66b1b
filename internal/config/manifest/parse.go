package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Limits on one file. They bound memory and time for input nobody vouches for; real manifests stay far below them.
const (
	MaxBytes     = 8 << 20
	MaxDepth     = 64
	MaxNodes     = 200_000 // after aliases are resolved: "billion laughs" ends here
	MaxDocuments = 10_000
)

// Parse reads every object of a file: YAML documents or JSON, a `kind: List` becomes its items. file is the name that
// diagnostics show. It returns the objects that could be read even when others could not.
func Parse(file string, data []byte) ([]Object, []model.Diagnostic) {
	p := parser{file: file}
	p.documents(data)
	return p.objects, p.report.Diagnostics()
}

// ParseFound is Parse for a file that nobody named: it was found in a folder, where other things than manifests may be. foreign
// says that it is one of them, and the diagnostics then that it is passed over.
func ParseFound(file string, data []byte) (objects []Object, ds []model.Diagnostic, foreign bool) {
	p := parser{file: file, found: true}
	p.documents(data)
	return p.objects, p.report.Diagnostics(), p.passed
}

type parser struct {
	file    string
	nodes   int
	objects []Object
	report  Report
	found   bool // in a folder
	passed  bool // as no manifest
}

func (p *parser) fail(code string, line int, hint, format string, args ...any) {
	p.report.Add(model.Diagnostic{
		Code: code, Severity: model.Error, Origin: ident.Origin{File: p.file, Line: line},
		Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func (p *parser) documents(data []byte) {
	if len(data) > MaxBytes {
		p.fail(CodeTooLarge, 0, "split it into several files", "the file has %d bytes; at most %d are read", len(data), MaxBytes)
		return
	}
	if line, problem := notText(data); problem != "" {
		p.fail(CodeSyntax, line, "save it as UTF-8 text", "%s", problem)
		return
	}
	// Files that are written one behind the other keep the mark that each began with; YAML allows it there (YAML 1.2 section 5.2).
	data = bytes.ReplaceAll(data, []byte("\n---\n\ufeff"), []byte("\n---\n"))
	decoder := yaml.NewDecoder(bytes.NewReader(plainEscapes(data)))
	var others []*yaml.Node // documents of a file of a folder that don't look like manifests
	own := false            // some do
	for n := 0; ; n++ {
		doc, err := decode(decoder)
		if errors.Is(err, io.EOF) {
			p.others(others, own, data)
			return
		}
		if err != nil {
			p.syntax(data, err)
			return
		}
		if n == MaxDocuments {
			p.fail(CodeTooLarge, doc.Line, "split it into several files", "more than %d documents in one file", MaxDocuments)
			return
		}
		if len(doc.Content) == 0 {
			continue
		}
		root := doc.Content[0]
		if p.found && root.ShortTag() != "!!null" && !resembles(root) {
			others = append(others, root)
			continue
		}
		own = own || root.ShortTag() != "!!null"
		if !p.root(root, data) {
			return
		}
	}
}

// others takes the documents of a file that don't look like manifests: where others of the file do, they are mistakes.
func (p *parser) others(docs []*yaml.Node, own bool, data []byte) {
	if len(docs) == 0 {
		return
	}
	if !own {
		p.passed = true
		p.report.Add(model.Diagnostic{
			Code: CodeForeign, Severity: model.Warning, Origin: ident.Origin{File: p.file, Line: docs[0].Line},
			Message: "this file is no manifest and is passed over: it has neither apiVersion nor kind nor metadata",
			Hint:    "nothing, when it is something else; a manifest starts with apiVersion, kind and metadata",
		})
		return
	}
	for _, n := range docs {
		if !p.root(n, data) {
			return
		}
	}
}

// resembles reports whether a document looks like a manifest, or like a list or text that was meant to be some: it has, or
// nearly has, one of the words with which they begin.
func resembles(n *yaml.Node) bool {
	words := []string{"apiVersion", "kind", "metadata"}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if key := n.Content[i]; key.ShortTag() == "!!merge" || key.Kind != yaml.ScalarNode || ident.Nearest(key.Value, words) != "" {
				return true
			}
		}
		return false
	case yaml.SequenceNode:
		return slices.ContainsFunc(n.Content, func(item *yaml.Node) bool { return item.Kind == yaml.MappingNode && resembles(item) })
	case yaml.ScalarNode:
		return slices.ContainsFunc(strings.Fields(n.Value), func(field string) bool {
			return slices.ContainsFunc(words, func(word string) bool { return strings.EqualFold(strings.Trim(field, ":="), word) })
		})
	}
	return true
}

// root takes a document. It returns false when nothing behind it can be read.
func (p *parser) root(n *yaml.Node, data []byte) bool {
	before := len(p.report.found)
	root, err := p.resolve(n, 0, nil)
	if err != nil {
		var limit *limitError
		if errors.As(err, &limit) {
			hint := limit.hint
			if limit.code == CodeSyntax && isTemplate(lineOf(data, limit.line)) {
				hint = renderFirst
			}
			p.fail(limit.code, limit.line, hint, "%s", limit.message)
		}
		return p.nodes <= MaxNodes
	}
	// With a key that stands twice nobody knows which object was meant; "---" may have nothing but comments behind it.
	if len(p.report.found) == before && root.ShortTag() != "!!null" {
		p.document(root)
	}
	return true
}

// jsonEscape finds the escapes of JSON that YAML does not have: a slash, and a character spelt as a surrogate pair (RFC
// 8259 section 7). It finds escaped backslashes too, which must not be taken for the start of one.
var jsonEscape = regexp.MustCompile(`\\\\|\\/|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)

// plainEscapes writes such characters out, when data is JSON; otherwise JSON is a part of YAML. Lines stay as they are.
func plainEscapes(data []byte) []byte {
	if !json.Valid(data) {
		return data
	}
	return jsonEscape.ReplaceAllFunc(data, func(m []byte) []byte {
		if len(m) == 2 {
			if m[1] == '/' {
				return m[1:]
			}
			return m
		}
		hi, errHi := strconv.ParseUint(string(m[2:6]), 16, 16)
		lo, errLo := strconv.ParseUint(string(m[8:12]), 16, 16)
		if errHi != nil || errLo != nil { // not reached: hexadecimal by the expression
			return m
		}
		return utf8.AppendRune(nil, utf16.DecodeRune(rune(hi), rune(lo)))
	})
}

// decode reads the next document. The library reports broken input as errors; should one of its panics ever escape, a
// user's file must not take the control plane down with it.
func decode(d *yaml.Decoder) (doc *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	doc = new(yaml.Node)
	if err := d.Decode(doc); err != nil {
		return nil, err
	}
	return doc, nil
}

// limitError stops one document.
type limitError struct {
	code    string
	line    int
	message string
	hint    string
}

func (e *limitError) Error() string { return e.message }

// resolve copies a tree without aliases and merge keys, counting what it makes. open holds the anchors being copied.
func (p *parser) resolve(n *yaml.Node, depth int, open []*yaml.Node) (*yaml.Node, error) {
	p.nodes++
	switch {
	case n.Kind != yaml.AliasNode && !knownTag(n):
		return nil, &limitError{CodeSyntax, n.Line, fmt.Sprintf("the tag %s cannot stand here", shown(n.Tag)), "remove it, or quote a text that starts with !"}
	case p.nodes > MaxNodes:
		return nil, &limitError{CodeTooLarge, n.Line, fmt.Sprintf("more than %d values in one file", MaxNodes), "split the file, or use fewer aliases"}
	case depth > MaxDepth:
		return nil, &limitError{CodeTooLarge, n.Line, fmt.Sprintf("nested deeper than %d levels", MaxDepth), ""}
	}
	switch n.Kind {
	case yaml.AliasNode:
		for _, o := range open {
			if o == n.Alias {
				return nil, &limitError{CodeSyntax, n.Line, fmt.Sprintf("alias *%s contains itself", n.Value), ""}
			}
		}
		return p.resolve(n.Alias, depth+1, append(open[:len(open):len(open)], n.Alias))
	case yaml.SequenceNode:
		out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Line: n.Line, Column: n.Column}
		for _, c := range n.Content {
			v, err := p.resolve(c, depth+1, open)
			if err != nil {
				return nil, err
			}
			out.Content = append(out.Content, v)
		}
		return out, nil
	case yaml.MappingNode:
		return p.mapping(n, depth, open)
	default:
		return n, nil
	}
}

func (p *parser) mapping(n *yaml.Node, depth int, open []*yaml.Node) (*yaml.Node, error) {
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Line: n.Line, Column: n.Column}
	var merged []*yaml.Node
	seen := make(map[string]int, len(n.Content)/2) // key → line
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return nil, &limitError{CodeSyntax, key.Line, "a key must be a plain word", "quote a key that starts with { or ["}
		}
		v, err := p.resolve(value, depth+1, open)
		if err != nil {
			return nil, err
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, v)
			continue
		}
		if line, ok := seen[key.Value]; ok {
			if depth == 0 && key.Value == "apiVersion" {
				return nil, &limitError{CodeDuplicateKey, key.Line, fmt.Sprintf("a second object begins here, inside the one of line %d", n.Line), "write a line of --- above this one"}
			}
			p.fail(CodeDuplicateKey, key.Line, "keep one of them", "key %q stands twice, first on line %d; only one can be meant", key.Value, line)
			continue
		}
		seen[key.Value] = key.Line
		out.Content = append(out.Content, key, v)
	}
	for _, m := range merged { // YAML merge keys: the mapping's own keys win, earlier merges over later ones
		sources := []*yaml.Node{m}
		if m.Kind == yaml.SequenceNode {
			sources = m.Content
		}
		for _, source := range sources {
			if source.Kind != yaml.MappingNode {
				return nil, &limitError{CodeSyntax, n.Line, "<< must name a mapping", "write << : *anchor"}
			}
			for i := 0; i+1 < len(source.Content); i += 2 {
				key := source.Content[i]
				if _, ok := seen[key.Value]; !ok {
					seen[key.Value] = key.Line
					out.Content = append(out.Content, key, source.Content[i+1])
				}
			}
		}
	}
	return out, nil
}

// document takes one document apart: an object, or a List of them.
func (p *parser) document(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		p.fail(CodeNotObject, n.Line, "a manifest starts with apiVersion, kind and metadata", "this document is %s, not an object", describe(n))
		return
	}
	o := Object{Node: n, Origin: ident.Origin{File: p.file, Line: n.Line}}
	var bad bool
	word := func(field string) string {
		key, v := lookup(n, field)
		switch {
		case v == nil || v.ShortTag() == "!!null":
			line, hint := n.Line, "a manifest starts with apiVersion, kind and metadata"
			if near := misspelt(n, field); near != nil {
				line, hint = near.Line, fmt.Sprintf("did you mean `%s` by `%s`?", field, near.Value)
			}
			p.fail(CodeNotObject, line, hint, "this document has no %s", field)
		case v.Kind != yaml.ScalarNode || v.ShortTag() != "!!str" || v.Value == "":
			p.fail(CodeNotObject, key.Line, "", "%s must be a string, not %s", field, describe(v))
		default:
			return v.Value
		}
		bad = true
		return ""
	}
	o.APIVersion, o.Kind = word("apiVersion"), word("kind")
	if !bad && !isWord(o.APIVersion, ".-/") {
		p.fail(CodeNotObject, o.Root().Field("apiVersion").Line(), "write GROUP/VERSION, or v1", "apiVersion %s is none", quoted(o.APIVersion))
		bad = true
	}
	if !bad && !isWord(o.Kind, "") {
		p.fail(CodeNotObject, o.Root().Field("kind").Line(), "write one word, such as Service", "kind %s is none", quoted(o.Kind))
		bad = true
	}
	if bad {
		return
	}
	if _, items := lookup(n, "items"); items != nil && strings.HasSuffix(o.Kind, "List") {
		if items.Kind != yaml.SequenceNode {
			if items.ShortTag() != "!!null" {
				p.fail(CodeNotObject, items.Line, "", "items of a List must be a list, not %s", describe(items))
			}
			return
		}
		for _, item := range items.Content {
			p.document(item)
		}
		return
	}
	p.metadata(&o)
}

// describe names a node for a message: "a list", "the number 5".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "an object"
	}
	value := shown(n.Value)
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "the boolean " + value
	case "!!int", "!!float":
		return "the number " + value
	case "!!timestamp":
		return "the date " + value
	}
	return "the string " + quoted(n.Value)
}

// misspelt returns the key of a mapping that field was most likely meant by, or nil.
func misspelt(n *yaml.Node, field string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != field && ident.Nearest(n.Content[i].Value, []string{field}) != "" {
			return n.Content[i]
		}
	}
	return nil
}

// isWord reports whether s has ASCII letters and digits only, and the characters of more.
func isWord(s, more string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(more, r) {
			return false
		}
	}
	return s != ""
}

// knownTag reports whether a node is what YAML says of itself, or what its text says by its form. A tag that somebody wrote may
// make a text of a number, and not a number of a text.
func knownTag(n *yaml.Node) bool {
	switch tag := n.ShortTag(); {
	case n.Kind == yaml.MappingNode:
		return tag == "!!map"
	case n.Kind == yaml.SequenceNode:
		return tag == "!!seq"
	case tag == "!!str":
		return true
	case n.Style&yaml.TaggedStyle != 0:
		plain := yaml.Node{Kind: yaml.ScalarNode, Value: n.Value}
		return tag == plain.ShortTag()
	}
	return true
}
