package crd

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// The rules of CRDs are written in CEL (github.com/google/cel-spec). What is read here is the part that CRDs of meshes use,
// with its meaning: a rule with anything else is an error of Parse, never one that silently holds. Numbers are all
// float64, as JSON has them.

// eval runs one expression.
type eval func(*scope) (any, error)

// scope is the variables that are visible, the innermost first.
type scope struct {
	name  string
	value any
	outer *scope
}

func (s *scope) find(name string) (any, bool) {
	for ; s != nil; s = s.outer {
		if s.name == name {
			return s.value, true
		}
	}
	return nil, false
}

var errType = errors.New("no such overload")

type token struct {
	kind rune // 'i' identifier, 's' string, 'n' number, 'o' operator, 0 the end
	text string
}

func lex(in string) ([]token, error) {
	var out []token
	for i := 0; i < len(in); {
		c := in[i]
		switch {
		case c == ' ' || c == '\n' || c == '\t' || c == '\r':
			i++
		case strings.HasPrefix(in[i:], `r"""`), strings.HasPrefix(in[i:], `r'''`):
			end := strings.Index(in[i+4:], in[i+1:i+4])
			if end < 0 {
				return nil, errors.New("a string does not end")
			}
			out = append(out, token{'s', in[i+4 : i+4+end]})
			i += 4 + end + 3
		case c == '\'' || c == '"' || c == 'r' && i+1 < len(in) && (in[i+1] == '\'' || in[i+1] == '"'):
			raw := c == 'r'
			if raw {
				i++
				c = in[i]
			}
			var b strings.Builder
			i++
			for ; i < len(in) && in[i] != c; i++ {
				if in[i] == '\\' && !raw && i+1 < len(in) {
					i++
					switch in[i] {
					case 'n':
						b.WriteByte('\n')
						continue
					case 't':
						b.WriteByte('\t')
						continue
					case '\\', '\'', '"', '`', '?':
					default:
						return nil, fmt.Errorf("unknown escape \\%c", in[i])
					}
				}
				b.WriteByte(in[i])
			}
			if i >= len(in) {
				return nil, errors.New("a string does not end")
			}
			i++
			out = append(out, token{'s', b.String()})
		case c >= '0' && c <= '9':
			j := i
			for j < len(in) && (in[j] >= '0' && in[j] <= '9' || in[j] == '.') {
				j++
			}
			out = append(out, token{'n', in[i:j]})
			i = j
		case isWord(c):
			j := i
			for j < len(in) && (isWord(in[j]) || in[j] >= '0' && in[j] <= '9') {
				j++
			}
			out = append(out, token{'i', in[i:j]})
			i = j
		default:
			op := in[i : i+1]
			if i+1 < len(in) && strings.Contains(" && || == != <= >= ", " "+in[i:i+2]+" ") {
				op = in[i : i+2]
			}
			if !strings.Contains("&& || == != <= >= < > ! ? : . , ( ) [ ] + - * / %", op) {
				return nil, fmt.Errorf("unexpected %q", op)
			}
			out = append(out, token{'o', op})
			i += len(op)
		}
	}
	return append(out, token{}), nil
}

func isWord(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' }

// maxNesting bounds recursion; no rule nests that deep.
const maxNesting = 200

type celParser struct {
	in    []token
	depth int
}

// compile makes a rule ready to run.
func compile(rule string) (eval, error) {
	in, err := lex(rule)
	if err != nil {
		return nil, err
	}
	p := &celParser{in: in}
	e, err := p.ternary()
	if err != nil {
		return nil, err
	}
	if p.in[0].kind != 0 {
		return nil, fmt.Errorf("unexpected %q", p.in[0].text)
	}
	return e, nil
}

func (p *celParser) next() token {
	t := p.in[0]
	if t.kind != 0 {
		p.in = p.in[1:]
	}
	return t
}

func (p *celParser) op(text string) bool {
	if p.in[0].kind == 'o' && p.in[0].text == text {
		p.next()
		return true
	}
	return false
}

func (p *celParser) want(text string) error {
	if !p.op(text) {
		return fmt.Errorf("want %q, got %q", text, p.in[0].text)
	}
	return nil
}

func (p *celParser) ternary() (eval, error) {
	p.depth++
	defer func() { p.depth-- }()
	if p.depth > maxNesting {
		return nil, errors.New("nested too deep")
	}
	cond, err := p.binary(0)
	if err != nil || !p.op("?") {
		return cond, err
	}
	yes, err := p.ternary()
	if err != nil {
		return nil, err
	}
	if err := p.want(":"); err != nil {
		return nil, err
	}
	no, err := p.ternary()
	if err != nil {
		return nil, err
	}
	return func(s *scope) (any, error) {
		c, err := cond(s)
		if err != nil {
			return nil, err
		}
		switch c {
		case true:
			return yes(s)
		case false:
			return no(s)
		}
		return nil, errType
	}, nil
}

// levels are the binary operators, the loosest first (cel-spec "Syntax").
var levels = [][]string{{"||"}, {"&&"}, {"==", "!=", "<", "<=", ">", ">=", "in"}, {"+", "-"}, {"*", "/", "%"}}

func (p *celParser) binary(level int) (eval, error) {
	if level == len(levels) {
		return p.unary()
	}
	left, err := p.binary(level + 1)
	if err != nil {
		return nil, err
	}
	for {
		var op string
		for _, o := range levels[level] {
			if (p.in[0].kind == 'o' || o == "in" && p.in[0].kind == 'i') && p.in[0].text == o {
				op = o
			}
		}
		if op == "" {
			return left, nil
		}
		p.next()
		right, err := p.binary(level + 1)
		if err != nil {
			return nil, err
		}
		left = operation(op, left, right)
	}
}

func operation(op string, left, right eval) eval {
	if op == "||" || op == "&&" { // an error on one side does not count when the other side decides
		decides := op == "||"
		return func(s *scope) (any, error) {
			a, errA := left(s)
			if errA == nil && a == decides {
				return decides, nil
			}
			b, errB := right(s)
			if errB == nil && b == decides {
				return decides, nil
			}
			if errA != nil || errB != nil {
				return nil, errors.Join(errA, errB)
			}
			if a != !decides || b != !decides {
				return nil, errType
			}
			return !decides, nil
		}
	}
	return func(s *scope) (any, error) {
		a, err := left(s)
		if err != nil {
			return nil, err
		}
		b, err := right(s)
		if err != nil {
			return nil, err
		}
		switch op {
		case "==":
			return equal(a, b), nil
		case "!=":
			return !equal(a, b), nil
		case "in":
			return contains(b, a)
		}
		return arithmetic(op, a, b)
	}
}

func contains(in, v any) (any, error) {
	switch in := in.(type) {
	case []any:
		for _, e := range in {
			if equal(e, v) {
				return true, nil
			}
		}
		return false, nil
	case map[string]any:
		key, ok := v.(string)
		if !ok {
			return nil, errType
		}
		_, ok = in[key]
		return ok, nil
	}
	return nil, errType
}

func equal(a, b any) bool { return reflect.DeepEqual(a, b) }

func arithmetic(op string, a, b any) (any, error) {
	var order int
	switch x := a.(type) {
	case float64:
		y, ok := b.(float64)
		if !ok {
			return nil, errType
		}
		switch op {
		case "+":
			return x + y, nil
		case "-":
			return x - y, nil
		case "*":
			return x * y, nil
		case "/", "%": // of whole numbers
			if int64(y) == 0 {
				return nil, errors.New("division by zero")
			}
			if op == "%" {
				return float64(int64(x) % int64(y)), nil
			}
			return float64(int64(x) / int64(y)), nil
		}
		order = compareOrdered(x < y, x > y)
	case string:
		y, ok := b.(string)
		if !ok {
			return nil, errType
		}
		if op == "+" {
			return x + y, nil
		}
		order = strings.Compare(x, y)
	case time.Duration:
		y, ok := b.(time.Duration)
		if !ok {
			return nil, errType
		}
		order = compareOrdered(x < y, x > y)
	default:
		return nil, errType
	}
	switch op {
	case "<":
		return order < 0, nil
	case "<=":
		return order <= 0, nil
	case ">":
		return order > 0, nil
	case ">=":
		return order >= 0, nil
	}
	return nil, errType
}

func compareOrdered(less, more bool) int {
	switch {
	case less:
		return -1
	case more:
		return 1
	}
	return 0
}

func (p *celParser) unary() (eval, error) {
	p.depth++
	defer func() { p.depth-- }()
	if p.depth > maxNesting {
		return nil, errors.New("nested too deep")
	}
	not, minus := p.op("!"), false
	if !not {
		minus = p.op("-")
	}
	if !not && !minus {
		return p.postfix()
	}
	below, err := p.unary()
	if err != nil {
		return nil, err
	}
	return func(s *scope) (any, error) {
		v, err := below(s)
		if err != nil {
			return nil, err
		}
		switch v := v.(type) {
		case bool:
			if not {
				return !v, nil
			}
		case float64:
			if minus {
				return -v, nil
			}
		}
		return nil, errType
	}, nil
}

func (p *celParser) postfix() (eval, error) {
	e, err := p.primary()
	if err != nil {
		return nil, err
	}
	for {
		switch {
		case p.op("."):
			name := p.next()
			if name.kind != 'i' {
				return nil, fmt.Errorf("want a name, got %q", name.text)
			}
			if !p.op("(") {
				e = field(e, name.text)
				continue
			}
			if e, err = p.method(e, name.text); err != nil {
				return nil, err
			}
		case p.op("["):
			index, err := p.ternary()
			if err != nil {
				return nil, err
			}
			if err := p.want("]"); err != nil {
				return nil, err
			}
			e = element(e, index)
		default:
			return e, nil
		}
	}
}

// unescape returns the property that a name of CEL means (Kubernetes "CEL in CRDs": reserved words stand in underscores).
func unescape(name string) string {
	if len(name) > 4 && strings.HasPrefix(name, "__") && strings.HasSuffix(name, "__") {
		return name[2 : len(name)-2]
	}
	return name
}

func field(of eval, name string) eval {
	name = unescape(name)
	return func(s *scope) (any, error) {
		v, err := of(s)
		if err != nil {
			return nil, err
		}
		m, ok := v.(map[string]any)
		if !ok {
			return nil, errType
		}
		f, ok := m[name]
		if !ok {
			return nil, fmt.Errorf("no such key: %s", name)
		}
		return f, nil
	}
}

func element(of, index eval) eval {
	return func(s *scope) (any, error) {
		v, err := of(s)
		if err != nil {
			return nil, err
		}
		at, err := index(s)
		if err != nil {
			return nil, err
		}
		switch v := v.(type) {
		case []any:
			i, ok := at.(float64)
			if !ok {
				return nil, errType
			}
			if i < 0 || int(i) >= len(v) {
				return nil, errors.New("index out of bounds")
			}
			return v[int(i)], nil
		case map[string]any:
			key, ok := at.(string)
			if !ok {
				return nil, errType
			}
			e, ok := v[key]
			if !ok {
				return nil, fmt.Errorf("no such key: %s", key)
			}
			return e, nil
		}
		return nil, errType
	}
}

func (p *celParser) primary() (eval, error) {
	t := p.next()
	switch {
	case t.kind == 's':
		return func(*scope) (any, error) { return t.text, nil }, nil
	case t.kind == 'n':
		n, err := strconv.ParseFloat(t.text, 64)
		if err != nil {
			return nil, err
		}
		return func(*scope) (any, error) { return n, nil }, nil
	case t.kind == 'o' && t.text == "(":
		e, err := p.ternary()
		if err != nil {
			return nil, err
		}
		return e, p.want(")")
	case t.kind == 'o' && t.text == "[":
		items, err := p.arguments("]")
		if err != nil {
			return nil, err
		}
		return func(s *scope) (any, error) {
			out := make([]any, len(items))
			for i, item := range items {
				v, err := item(s)
				if err != nil {
					return nil, err
				}
				out[i] = v
			}
			return out, nil
		}, nil
	case t.kind == 'i' && (t.text == "true" || t.text == "false"):
		return func(*scope) (any, error) { return t.text == "true", nil }, nil
	case t.kind == 'i' && t.text == "null":
		return func(*scope) (any, error) { return nil, nil }, nil
	case t.kind == 'i' && p.op("("):
		return p.function(t.text)
	case t.kind == 'i':
		return func(s *scope) (any, error) {
			v, ok := s.find(t.text)
			if !ok {
				return nil, fmt.Errorf("undeclared reference to %s", t.text)
			}
			return v, nil
		}, nil
	}
	return nil, fmt.Errorf("unexpected %q", t.text)
}

func (p *celParser) arguments(end string) ([]eval, error) {
	var out []eval
	for !p.op(end) {
		if len(out) > 0 {
			if err := p.want(","); err != nil {
				return nil, err
			}
		}
		e, err := p.ternary()
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}
