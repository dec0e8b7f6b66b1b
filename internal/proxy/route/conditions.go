package route

import (
	"cmp"
	"fmt"

	"github.com/malha-mesh/malha/internal/match"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/message"
)

// conditions is a plan.Match made ready to run. nil holds for every request. What most rules ask stands in one piece of memory.
type conditions struct {
	path, method match.Matcher // zero: not asked
	more         *rareConditions
}

type rareConditions struct {
	scheme, authority match.Matcher // zero: not asked
	headers, query    []fieldCondition
	tree              *tree
}

// fieldCondition is a plan.FieldMatch made ready to run.
type fieldCondition struct {
	name   string
	from   source
	value  match.Matcher
	invert bool
}

// source says where the lines of a header condition are. The codecs take some headers out of message.Request.Fields;
// people still write rules about them under their names.
type source uint8

const (
	fromFields source = iota
	fromAuthority
	fromMethod
	fromScheme
	fromPath
	fromUpgrade
)

// tree is a plan.Cond made ready to run.
type tree struct {
	path, method match.Matcher // zero: not asked
	all, any     []tree
	not          *tree
}

// Condition is a plan.Match made ready to run, for rules that are not routes. The zero Condition holds for every request.
type Condition struct {
	plan *plan.Match
	c    *conditions
}

// NewCondition makes m ready to run. It keeps the pointer.
func NewCondition(m *plan.Match) (Condition, error) {
	c, err := compileConditions(m)
	return Condition{m, c}, err
}

// Holds reports whether every part of the condition holds for r.
func (c *Condition) Holds(r *message.Request) bool { return c.c.holds(r) }

// Failure names the first part that does not hold, and what was there instead; "" when the condition holds.
func (c *Condition) Failure(r *message.Request) string { return failure(c.plan, c.c, r) }

func compileConditions(m *plan.Match) (*conditions, error) {
	rare := m.Scheme != nil || m.Authority != nil || len(m.Headers) > 0 || len(m.Query) > 0 || m.Cond != nil
	if m.Path == nil && m.Method == nil && !rare {
		return nil, nil
	}
	c := &conditions{}
	if err := cmp.Or(compileString("path", m.Path, &c.path), compileString("method", m.Method, &c.method)); err != nil {
		return nil, err
	}
	if !rare {
		return c, nil
	}
	x := &rareConditions{}
	c.more = x
	if err := cmp.Or(compileString("scheme", m.Scheme, &x.scheme), compileString("authority", m.Authority, &x.authority)); err != nil {
		return nil, err
	}
	var err error
	if x.headers, err = compileFields("header", m.Headers); err != nil {
		return nil, err
	}
	if x.query, err = compileFields("query parameter", m.Query); err != nil {
		return nil, err
	}
	if m.Cond != nil {
		t, err := compileTree(m.Cond)
		if err != nil {
			return nil, err
		}
		x.tree = &t
	}
	return c, nil
}

func compileString(what string, from *match.String, to *match.Matcher) error {
	if from == nil {
		return nil
	}
	var err error
	if *to, err = from.Compile(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func compileFields(what string, fields []plan.FieldMatch) ([]fieldCondition, error) {
	if len(fields) == 0 {
		return nil, nil
	}
	out := make([]fieldCondition, len(fields))
	for i := range fields {
		f := &fields[i]
		m, err := f.Value.Compile()
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", what, f.Name, err)
		}
		out[i] = fieldCondition{name: f.Name, from: sourceOf(f.Name), value: m, invert: f.Invert}
	}
	return out, nil
}

func sourceOf(header string) source {
	switch header {
	case "host", ":authority":
		return fromAuthority
	case ":method":
		return fromMethod
	case ":scheme":
		return fromScheme
	case ":path":
		return fromPath
	case "upgrade":
		return fromUpgrade
	}
	return fromFields
}

func compileTree(c *plan.Cond) (tree, error) {
	var t tree
	if err := compileString("path", c.Path, &t.path); err != nil {
		return tree{}, err
	}
	if err := compileString("method", c.Method, &t.method); err != nil {
		return tree{}, err
	}
	var err error
	if t.all, err = compileTrees(c.All); err != nil {
		return tree{}, err
	}
	if t.any, err = compileTrees(c.Any); err != nil {
		return tree{}, err
	}
	if c.Not != nil {
		n, err := compileTree(c.Not)
		if err != nil {
			return tree{}, err
		}
		t.not = &n
	}
	return t, nil
}

func compileTrees(cs []plan.Cond) ([]tree, error) {
	var out []tree
	for i := range cs {
		t, err := compileTree(&cs[i])
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// holds reports whether every condition holds.
func (c *conditions) holds(r *message.Request) bool {
	if c == nil {
		return true
	}
	if !fits(&c.path, r.Path) || !fits(&c.method, r.Method) {
		return false
	}
	return c.more == nil || c.more.holds(r)
}

// fits reports whether v satisfies a condition that may not be asked.
func fits(m *match.Matcher, v []byte) bool { return m.IsZero() || m.Match(v) }

func (c *rareConditions) holds(r *message.Request) bool {
	if !fits(&c.scheme, r.Scheme) || !fits(&c.authority, r.Authority) {
		return false
	}
	for i := range c.headers {
		if !c.headers[i].holdsHeader(r) {
			return false
		}
	}
	for i := range c.query {
		if !c.query[i].holdsQuery(r) {
			return false
		}
	}
	return c.tree == nil || c.tree.holds(r)
}

// holdsHeader asks each line of a repeated header: one that matches is enough, and with invert none may. A header is
// not joined with commas first: a second line must be able neither to hide a value from an inverted condition nor to
// spoil an exact one.
func (f *fieldCondition) holdsHeader(r *message.Request) bool {
	if f.from == fromFields {
		for i := range r.Fields {
			if string(r.Fields[i].Name) == f.name && f.value.Match(r.Fields[i].Value) {
				return !f.invert
			}
		}
		return f.invert
	}
	one := f.from.of(r)
	return (len(one) > 0 && f.value.Match(one)) != f.invert
}

// of returns what the codecs took out of the fields; empty when it is absent.
func (s source) of(r *message.Request) []byte {
	switch s {
	case fromAuthority:
		return r.Authority
	case fromMethod:
		return r.Method
	case fromScheme:
		return r.Scheme
	case fromPath:
		return r.Path
	case fromUpgrade:
		return r.Upgrade
	}
	return nil
}

// holdsQuery asks the first value of a parameter.
func (f *fieldCondition) holdsQuery(r *message.Request) bool {
	v, scratch, found := parameter(r.Query, f.name)
	holds := found && f.value.Match(v)
	scratch.free()
	return holds != f.invert
}

// holds reports whether every part of the tree holds. An empty tree holds; an empty any is no condition.
func (t *tree) holds(r *message.Request) bool {
	if !fits(&t.path, r.Path) || !fits(&t.method, r.Method) {
		return false
	}
	for i := range t.all {
		if !t.all[i].holds(r) {
			return false
		}
	}
	if len(t.any) > 0 {
		found := false
		for i := range t.any {
			if found = t.any[i].holds(r); found {
				break
			}
		}
		if !found {
			return false
		}
	}
	return t.not == nil || !t.not.holds(r)
}
