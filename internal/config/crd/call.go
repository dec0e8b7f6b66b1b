package crd

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// function reads a call f(…), behind its parenthesis.
func (p *celParser) function(name string) (eval, error) {
	if name == "has" {
		return p.has()
	}
	args, err := p.arguments(")")
	if err != nil {
		return nil, err
	}
	var f func(any) (any, error)
	switch name {
	case "size":
		f = size
	case "duration":
		f = func(v any) (any, error) {
			s, ok := v.(string)
			if !ok {
				return nil, errType
			}
			return time.ParseDuration(s)
		}
	case "isIP": // a function for text; an IPv6 zone is none
		f = func(v any) (any, error) {
			s, ok := v.(string)
			if !ok {
				return nil, errType
			}
			a, err := netip.ParseAddr(s)
			return err == nil && a.Zone() == "", nil
		}
	case "int", "double", "dyn": // all numbers are alike here
		f = func(v any) (any, error) { return v, nil }
	case "string":
		f = func(v any) (any, error) { return fmt.Sprint(v), nil }
	}
	if f == nil || len(args) != 1 {
		return nil, fmt.Errorf("unknown function %s with %d arguments", name, len(args))
	}
	return func(s *scope) (any, error) {
		v, err := args[0](s)
		if err != nil {
			return nil, err
		}
		return f(v)
	}, nil
}

// has reads has(a.b.c): whether the last field is there.
func (p *celParser) has() (eval, error) {
	e, err := p.primary()
	if err != nil {
		return nil, err
	}
	last := "" // the field that was named last; e is what it is a field of
	settle := func() {
		if last != "" {
			e, last = field(e, last), ""
		}
	}
	for {
		if p.op("[") { // has(self.list[0].field)
			index, err := p.ternary()
			if err != nil {
				return nil, err
			}
			if err := p.want("]"); err != nil {
				return nil, err
			}
			settle()
			e = element(e, index)
			continue
		}
		if !p.op(".") {
			break
		}
		name := p.next()
		if name.kind != 'i' {
			return nil, fmt.Errorf("want a name, got %q", name.text)
		}
		settle()
		last = name.text
	}
	if last == "" {
		return nil, errors.New("has wants a field")
	}
	last = unescape(last)
	return func(s *scope) (any, error) {
		v, err := e(s)
		if err != nil {
			return nil, err
		}
		m, ok := v.(map[string]any)
		if !ok {
			return nil, errType
		}
		_, ok = m[last]
		return ok, nil
	}, p.want(")")
}

func size(v any) (any, error) {
	switch v := v.(type) {
	case string:
		return float64(utf8.RuneCountInString(v)), nil
	case []any:
		return float64(len(v)), nil
	case map[string]any:
		return float64(len(v)), nil
	}
	return nil, errType
}

// method reads a call e.name(…), behind its parenthesis.
func (p *celParser) method(e eval, name string) (eval, error) {
	switch name {
	case "all", "exists", "exists_one", "filter", "map":
		return p.macro(e, name)
	}
	args, err := p.arguments(")")
	if err != nil {
		return nil, err
	}
	f, count := textMethod(name)
	if name == "size" {
		count = 0
	}
	if f == nil && name != "size" || len(args) < count || len(args) > count && name != "substring" || len(args) > 2 {
		return nil, fmt.Errorf("unknown method %s with %d arguments", name, len(args))
	}
	return func(s *scope) (any, error) {
		v, err := e(s)
		if err != nil {
			return nil, err
		}
		if name == "size" {
			return size(v)
		}
		text, ok := v.(string)
		if !ok {
			return nil, errType
		}
		values := make([]any, len(args))
		for i, a := range args {
			if values[i], err = a(s); err != nil {
				return nil, err
			}
		}
		return f(text, values)
	}, nil
}

// textMethod returns a method of strings and how many arguments it has.
func textMethod(name string) (f func(string, []any) (any, error), count int) {
	with := func(f func(s, arg string) any) func(string, []any) (any, error) {
		return func(s string, args []any) (any, error) {
			arg, ok := args[0].(string)
			if !ok {
				return nil, errType
			}
			return f(s, arg), nil
		}
	}
	switch name {
	case "startsWith":
		return with(func(s, arg string) any { return strings.HasPrefix(s, arg) }), 1
	case "endsWith":
		return with(func(s, arg string) any { return strings.HasSuffix(s, arg) }), 1
	case "contains":
		return with(func(s, arg string) any { return strings.Contains(s, arg) }), 1
	case "indexOf":
		return with(func(s, arg string) any { return float64(strings.Index(s, arg)) }), 1
	case "split":
		return with(func(s, arg string) any {
			var out []any
			for _, part := range strings.Split(s, arg) {
				out = append(out, part)
			}
			return out
		}), 1
	case "lowerAscii":
		return func(s string, _ []any) (any, error) { return strings.ToLower(s), nil }, 0
	case "matches":
		return func(s string, args []any) (any, error) {
			pattern, ok := args[0].(string)
			if !ok {
				return nil, errType
			}
			re, err := regexp.Compile(pattern)
			if err != nil {
				return nil, err
			}
			return re.MatchString(s), nil
		}, 1
	case "substring":
		return func(s string, args []any) (any, error) {
			runes := []rune(s)
			from, ok := args[0].(float64)
			to := float64(len(runes))
			if len(args) == 2 {
				to, ok = args[1].(float64)
			}
			if !ok || from < 0 || to > float64(len(runes)) || from > to {
				return nil, errors.New("index out of range")
			}
			return string(runes[int(from):int(to)]), nil
		}, 1
	}
	return nil, 0
}

// macro reads e.all(x, cond) and its kin.
func (p *celParser) macro(e eval, name string) (eval, error) {
	variable := p.next()
	if variable.kind != 'i' {
		return nil, fmt.Errorf("want a variable, got %q", variable.text)
	}
	if err := p.want(","); err != nil {
		return nil, err
	}
	body, err := p.ternary()
	if err != nil {
		return nil, err
	}
	if err := p.want(")"); err != nil {
		return nil, err
	}
	return func(s *scope) (any, error) {
		v, err := e(s)
		if err != nil {
			return nil, err
		}
		items, err := itemsOf(v)
		if err != nil {
			return nil, err
		}
		found, some := 0, error(nil)
		var kept []any
		for _, item := range items {
			result, err := body(&scope{name: variable.text, value: item, outer: s})
			switch {
			case err != nil && (name == "all" || name == "exists"): // counts only when no other element decides
				some = err
				continue
			case err != nil:
				return nil, err
			case name == "map":
				kept = append(kept, result)
				continue
			}
			if result == true {
				found++
				kept = append(kept, item)
			} else if result != false {
				return nil, errType
			}
			if name == "all" && result == false || name == "exists" && result == true {
				return result, nil
			}
		}
		switch name {
		case "all":
			return some == nil, some
		case "exists":
			return false, some
		case "exists_one":
			return found == 1, nil
		}
		return kept, nil
	}, nil
}

// itemsOf returns the elements of a list, or the keys of a map.
func itemsOf(v any) ([]any, error) {
	switch v := v.(type) {
	case []any:
		return v, nil
	case map[string]any:
		out := make([]any, 0, len(v))
		for k := range v {
			out = append(out, k)
		}
		return out, nil
	}
	return nil, errType
}
