package local

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// exposition merges what many proxies expose into one page that is still a valid Prometheus text exposition
// (https://prometheus.io/docs/instrumenting/exposition_formats/, "all lines for a given metric must be provided as one
// single group"): the families are grouped again, and every sample is told apart by a label `proxy`.
type exposition struct {
	families map[string]*family
}

type family struct {
	help, kind string // whole comment lines
	samples    []string
}

// add merges the page of one proxy.
func (e *exposition) add(proxy string, page []byte) {
	if e.families == nil {
		e.families = make(map[string]*family)
	}
	label := "proxy=" + strconv.Quote(proxy)
	current := ""
	for line := range bytes.Lines(page) {
		s := strings.TrimSpace(string(line))
		switch {
		case s == "":
		case strings.HasPrefix(s, "# HELP "), strings.HasPrefix(s, "# TYPE "):
			name, _, _ := strings.Cut(s[len("# HELP "):], " ")
			current = name
			f := e.family(name)
			if s[2] == 'H' {
				f.help = s
			} else {
				f.kind = s
			}
		case s[0] == '#':
		default:
			i := strings.IndexAny(s, "{ \t")
			if i < 0 {
				continue
			}
			name := s[:i]
			f := e.family(familyOf(name, current))
			switch {
			case s[i] != '{':
				s = name + "{" + label + "}" + s[i:]
			case strings.HasPrefix(s[i:], "{}"):
				s = name + "{" + label + s[i+1:]
			default:
				s = name + "{" + label + "," + s[i+1:]
			}
			f.samples = append(f.samples, s)
		}
	}
}

// familyOf returns the family of a sample: the one being described, when the sample is it or one of its parts.
func familyOf(name, current string) string {
	if rest, ok := strings.CutPrefix(name, current); ok && current != "" {
		switch rest {
		case "", "_bucket", "_sum", "_count", "_total", "_created", "_info":
			return current
		}
	}
	return name
}

func (e *exposition) family(name string) *family {
	f := e.families[name]
	if f == nil {
		f = &family{}
		e.families[name] = f
	}
	return f
}

// write writes the merged page, families by name.
func (e *exposition) write(w io.Writer) error {
	names := make([]string, 0, len(e.families))
	for n := range e.families {
		names = append(names, n)
	}
	slices.Sort(names)
	var b bytes.Buffer
	for _, n := range names {
		f := e.families[n]
		if len(f.samples) == 0 {
			continue
		}
		for _, comment := range []string{f.help, f.kind} {
			if comment != "" {
				fmt.Fprintln(&b, comment)
			}
		}
		for _, s := range f.samples {
			fmt.Fprintln(&b, s)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
