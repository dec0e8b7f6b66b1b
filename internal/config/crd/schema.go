// Package crd checks an object as an API server does that has its CustomResourceDefinition: values in, defaults filled in,
// everything that the schema or one of its rules forbids reported with its line.
//
// It is pure. A Schema is the openAPIV3Schema of a CRD as JSON: lengths, counts, ranges, patterns, enumerations, required
// fields, list maps, and x-kubernetes-validations, whose language (CEL) cel.go reads as far as CRDs of meshes use it. Types and
// unknown fields are not checked here: manifest.Kind did that before, with better hints.
package crd

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/malha-mesh/malha/internal/config/manifest"
)

// Schema is what may stand at a place (Kubernetes JSONSchemaProps, structural). It is immutable once parsed.
type Schema struct {
	Properties           map[string]*Schema `json:"properties,omitempty"`
	Items                *Schema            `json:"items,omitempty"`
	AdditionalProperties *Schema            `json:"additionalProperties,omitempty"`
	Required             []string           `json:"required,omitempty"`
	Enum                 []any              `json:"enum,omitempty"`
	Pattern              string             `json:"pattern,omitempty"`
	Format               string             `json:"format,omitempty"`
	MinLength            *int               `json:"minLength,omitempty"`
	MaxLength            *int               `json:"maxLength,omitempty"`
	MinItems             *int               `json:"minItems,omitempty"`
	MaxItems             *int               `json:"maxItems,omitempty"`
	MaxProperties        *int               `json:"maxProperties,omitempty"`
	Minimum              *float64           `json:"minimum,omitempty"`
	Maximum              *float64           `json:"maximum,omitempty"`
	Default              any                `json:"default,omitempty"`
	ListType             string             `json:"x-kubernetes-list-type,omitempty"`
	ListMapKeys          []string           `json:"x-kubernetes-list-map-keys,omitempty"`
	Rules                []Rule             `json:"x-kubernetes-validations,omitempty"`

	pattern *regexp.Regexp
}

// Rule is one entry of x-kubernetes-validations.
type Rule struct {
	Rule    string `json:"rule"`
	Message string `json:"message,omitempty"`

	run eval // nil for a rule about changes (oldSelf): a file has no past
}

// Parse reads a Schema and makes its patterns and rules ready.
func Parse(data []byte) (*Schema, error) {
	s := &Schema{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("reading a schema: %w", err)
	}
	if err := s.prepare(map[string]eval{}, ""); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Schema) prepare(made map[string]eval, path string) (err error) {
	if s.Pattern != "" {
		if s.pattern, err = regexp.Compile(s.Pattern); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for i := range s.Rules {
		rule := &s.Rules[i]
		if strings.Contains(rule.Rule, "oldSelf") {
			continue
		}
		if made[rule.Rule] == nil {
			if made[rule.Rule], err = compile(rule.Rule); err != nil {
				return fmt.Errorf("%s: rule %q: %w", path, rule.Rule, err)
			}
		}
		rule.run = made[rule.Rule]
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		if err := s.Properties[name].prepare(made, path+"."+name); err != nil {
			return err
		}
	}
	for _, below := range []*Schema{s.Items, s.AdditionalProperties} {
		if below != nil {
			if err := below.prepare(made, path+"[]"); err != nil {
				return err
			}
		}
	}
	return nil
}

// Fill returns v, decoded JSON, with the defaults of what is not in it. v itself is changed too.
func (s *Schema) Fill(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, p := range s.Properties {
			have, ok := v[name]
			if !ok && p.Default != nil {
				have, ok = clone(p.Default), true
			}
			if ok {
				v[name] = p.Fill(have)
			}
		}
		if s.AdditionalProperties != nil {
			for k, e := range v {
				v[k] = s.AdditionalProperties.Fill(e)
			}
		}
	case []any:
		if s.Items != nil {
			for i, e := range v {
				v[i] = s.Items.Fill(e)
			}
		}
	}
	return v
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = clone(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = clone(e)
		}
		return out
	}
	return v
}

// Check reports everything in v, with its defaults filled in, that s forbids, and whether there was nothing.
func (s *Schema) Check(at manifest.Cursor, v any, r *manifest.Report) bool {
	_, before := r.Len()
	s.check(at, v, r)
	_, after := r.Len()
	return before == after
}

// check reports whether v and all below it are as the schema has them. Rules are asked about sound values only; one that does not hold
// is no reason not to ask another.
func (s *Schema) check(at manifest.Cursor, v any, r *manifest.Report) (sound bool) {
	broken := false
	fail := func(code, hint, format string, args ...any) {
		broken = true
		r.Error(code, at, hint, format, args...)
	}
	if len(s.Enum) > 0 && !slices.ContainsFunc(s.Enum, func(e any) bool { return equal(e, v) }) {
		words := make([]string, len(s.Enum))
		for i, e := range s.Enum {
			words[i] = fmt.Sprint(e)
		}
		fail(manifest.CodeBadEnum, manifest.DidYouMean(fmt.Sprint(v), words), "unknown value %q", fmt.Sprint(v))
	}
	switch v := v.(type) {
	case string:
		n := utf8.RuneCountInString(v)
		switch {
		case s.MinLength != nil && n < *s.MinLength && n == 0:
			fail(manifest.CodeRequired, "", "it is empty")
		case s.MinLength != nil && n < *s.MinLength:
			fail(manifest.CodeBadValue, "", "%q is too short: at least %d characters", v, *s.MinLength)
		case s.MaxLength != nil && n > *s.MaxLength:
			fail(manifest.CodeBadValue, "", "%d characters are too many: at most %d", n, *s.MaxLength)
		case s.pattern != nil && !s.pattern.MatchString(v):
			fail(manifest.CodeBadValue, "it must match "+s.Pattern, "%q is not valid here", v)
		case s.Format != "" && !hasFormat(s.Format, v):
			fail(manifest.CodeBadValue, "", "%q is not of the form %s", v, s.Format)
		}
	case float64:
		if s.Minimum != nil && v < *s.Minimum || s.Maximum != nil && v > *s.Maximum {
			fail(manifest.CodeOutOfRange, "", "%s is out of range%s", plain(v), s.bounds())
		}
	case []any:
		if !s.checkList(at, v, r, fail) {
			broken = true
		}
	case map[string]any:
		if s.MaxProperties != nil && len(v) > *s.MaxProperties {
			fail(manifest.CodeOutOfRange, "", "%d entries are too many: at most %d", len(v), *s.MaxProperties)
		}
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				broken = true
				r.Error(manifest.CodeRequired, at.Field(name), "add "+name+": …", "`%s` is missing", name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if p := s.Properties[name]; p != nil {
				broken = !p.check(at.Field(name), v[name], r) || broken
			} else if s.AdditionalProperties != nil {
				broken = !s.AdditionalProperties.check(at.Key(name), v[name], r) || broken
			}
		}
	}
	if broken {
		return false
	}
	for i := range s.Rules {
		rule := &s.Rules[i]
		if rule.run == nil {
			continue
		}
		message := rule.Message
		if message == "" {
			message = "must hold: " + rule.Rule
		}
		if ok, err := rule.run(&scope{name: "self", value: v}); err != nil || ok != true {
			r.Error(manifest.CodeBadValue, at, "", "%s", message)
		}
	}
	return true
}

func (s *Schema) checkList(at manifest.Cursor, v []any, r *manifest.Report, fail func(code, hint, format string, args ...any)) (sound bool) {
	sound = true
	switch {
	case s.MinItems != nil && len(v) < *s.MinItems && len(v) == 0:
		fail(manifest.CodeRequired, "add one", "the list is empty")
	case s.MinItems != nil && len(v) < *s.MinItems:
		fail(manifest.CodeRequired, "", "%d elements are too few: at least %d", len(v), *s.MinItems)
	case s.MaxItems != nil && len(v) > *s.MaxItems:
		fail(manifest.CodeOutOfRange, "split the object in several", "%d elements are too many: at most %d", len(v), *s.MaxItems)
	}
	first := map[string]int{}
	for i, e := range v {
		if s.Items != nil {
			sound = s.Items.check(at.Index(i), e, r) && sound
		}
		var id string
		switch s.ListType {
		case "set":
			id = fmt.Sprintf("%v", e)
		case "map":
			fields, _ := e.(map[string]any)
			var parts []string
			for _, k := range s.ListMapKeys {
				parts = append(parts, fmt.Sprintf("%s %v", k, fields[k]))
			}
			id = strings.Join(parts, ", ")
		default:
			continue
		}
		if line, twice := first[id]; twice {
			sound = false
			r.Error(manifest.CodeDuplicateKey, at.Index(i), "keep one of them", "%s stands twice, first on line %d", id, line)
		} else {
			first[id] = at.Index(i).Line()
		}
	}
	return sound
}

func (s *Schema) bounds() string {
	switch {
	case s.Minimum != nil && s.Maximum != nil:
		return ": from " + plain(*s.Minimum) + " to " + plain(*s.Maximum)
	case s.Minimum != nil:
		return ": at least " + plain(*s.Minimum)
	case s.Maximum != nil:
		return ": at most " + plain(*s.Maximum)
	}
	return ""
}

func plain(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// hasFormat knows the formats that structural schemas of meshes use; like an API server it lets others pass.
func hasFormat(format, v string) bool {
	switch format {
	case "ipv4":
		a, err := netip.ParseAddr(v)
		return err == nil && a.Is4()
	case "ipv6":
		a, err := netip.ParseAddr(v)
		return err == nil && a.Is6()
	}
	return true
}
