package istio

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/plan"
)

// operator is a variable: %NAME%, %NAME(argument)%, %NAME(argument):LENGTH%. Source: Envoy, "Command operators".
var operator = regexp.MustCompile(`^%([A-Z][A-Z0-9_]*)(?:\(([^()]*)\))?(?::([0-9]{1,9}))?%`)

// sameAs is what Envoy has several names for.
var sameAs = map[string]plan.Variable{
	"UPSTREAM_REMOTE_ADDRESS": plan.VarUpstream,
}

// variables are those that a hint names.
const variables = "REQ, PROTOCOL, START_TIME, HOSTNAME, ROUTE_NAME, UPSTREAM_CLUSTER, REQUESTED_SERVER_NAME, DOWNSTREAM_PEER_URI_SAN, DOWNSTREAM_REMOTE_ADDRESS, " +
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS, DOWNSTREAM_LOCAL_ADDRESS, for responses also RESP, RESPONSE_CODE, RESPONSE_FLAGS, RESPONSE_CODE_DETAILS, UPSTREAM_HOST"

// format reads the value of a header: a format string, where %% is a percent sign and %NAME% a variable. It returns the text,
// or for a value with variables that as it was written and its parts.
func (r *reader) format(at manifest.Cursor, v string, request bool) (string, *plan.Format) {
	var f plan.Format
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			f.Parts = append(f.Parts, plan.Part{Text: text.String()})
			text.Reset()
		}
	}
	found := false
	for rest := v; rest != ""; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			text.WriteString(rest)
			break
		}
		text.WriteString(rest[:i])
		rest = rest[i:]
		if strings.HasPrefix(rest, "%%") {
			text.WriteByte('%')
			rest = rest[2:]
			continue
		}
		m, length := r.operator(rest)
		if m == nil {
			r.Error(manifest.CodeHeaderOp, at, "write %% for a percent sign; a variable is %NAME%, %NAME(ARGUMENT)% or %NAME(ARGUMENT):LENGTH%", "%q does not begin a variable", shorten(rest))
			return "", nil
		}
		rest = rest[length:]
		p, ok := r.part(at, m, request)
		if !ok {
			return "", nil
		}
		found = true
		flush()
		f.Parts = append(f.Parts, p)
	}
	if !found {
		return text.String(), nil
	}
	flush()
	return v, &f
}

// startTime is the one variable whose argument has percent signs.
var startTime = regexp.MustCompile(`^%(START_TIME)\(([^()]*)\)(?::([0-9]{1,9}))?%`)

func (r *reader) operator(s string) ([]string, int) {
	for _, e := range []*regexp.Regexp{startTime, operator} {
		if m := e.FindStringSubmatch(s); m != nil {
			return m, len(m[0])
		}
	}
	return nil, 0
}

// part reads a variable: its name, its argument and its length.
func (r *reader) part(at manifest.Cursor, m []string, request bool) (plan.Part, bool) {
	p := plan.Part{Var: plan.Variable(m[1])}
	if v, ok := sameAs[m[1]]; ok {
		p.Var = v
	}
	if m[3] != "" {
		n, err := strconv.ParseUint(m[3], 10, 32)
		if err != nil || n == 0 {
			r.Error(manifest.CodeHeaderOp, at, "leave it out, or write a positive number", "variable %s: length %s takes nothing", m[1], m[3])
			return p, false
		}
		p.Max = uint32(n)
	}
	switch {
	case !p.Var.Known() || p.Var == plan.VarStartSeconds:
		r.Error(manifest.CodeUnsupported, at, "use one of "+variables+"; write %% for a percent sign", "variable %%%s%% is not supported by Malha", m[1])
		return p, false
	case request && p.Var.OfResponses():
		r.Error(manifest.CodeHeaderOp, at, "use it in headers.response", "variable %%%s%% is not known before there is a response", m[1])
		return p, false
	case p.Var == plan.VarRequest || p.Var == plan.VarResponse:
		name, other, _ := strings.Cut(strings.ToLower(m[2]), "?")
		p.Name, p.Else = name, other
		names := []string{name}
		if other != "" { // of which the value is taken where the first is not there
			names = append(names, other)
		}
		for _, n := range names {
			pseudo := p.Var == plan.VarRequest && (n == ":method" || n == ":path" || n == ":authority" || n == ":scheme")
			if !pseudo && !isToken(n) {
				r.Error(manifest.CodeHeaderOp, at, "write %REQ(NAME)% or %REQ(NAME?OTHER)%", "variable %s: %q is not the name of a header", m[1], n)
				return p, false
			}
		}
	case p.Var == plan.VarStartTime:
		return r.timePart(at, p, m[2])
	case m[2] != "":
		r.Error(manifest.CodeHeaderOp, at, "leave the parentheses out", "variable %s takes no argument", m[1])
		return p, false
	}
	return p, true
}

// layouts are what conversions of strftime(3) are in layouts of package time. %3f and its like are the digits of a second.
var layouts = map[string]string{
	"%Y": "2006", "%y": "06", "%m": "01", "%d": "02", "%e": "_2", "%b": "Jan", "%B": "January", "%a": "Mon", "%A": "Monday",
	"%H": "15", "%I": "03", "%M": "04", "%S": "05", "%p": "PM", "%z": "-0700", "%Z": "MST", "%F": "2006-01-02", "%T": "15:04:05",
	".%3f": ".000", ".%6f": ".000000", ".%9f": ".000000000",
}

// timePart reads the argument of START_TIME. Without any it is that of Envoy: 2018-04-03T23:06:09.123Z.
func (r *reader) timePart(at manifest.Cursor, p plan.Part, argument string) (plan.Part, bool) {
	switch argument {
	case "":
		argument = "%Y-%m-%dT%H:%M:%S.%3fZ"
	case "%s":
		p.Var = plan.VarStartSeconds
		return p, true
	}
	var out strings.Builder
	for rest := argument; rest != ""; {
		n := 0
		for _, size := range []int{4, 2} {
			if layout, ok := layouts[rest[:min(size, len(rest))]]; ok && len(rest) >= size {
				out.WriteString(layout)
				n = size
				break
			}
		}
		// Letters and digits would mean something in a layout, but for these two.
		if c := rest[0]; n == 0 && c != '%' && (strings.IndexByte("TZ -:/.,", c) >= 0) {
			out.WriteByte(c)
			n = 1
		}
		if n == 0 {
			r.Error(manifest.CodeHeaderOp, at, "use %s, or %Y %m %d %H %M %S .%3f and their like with signs between them", "START_TIME: %q can't be part of the format", shorten(rest))
			return p, false
		}
		rest = rest[n:]
	}
	p.Name = out.String()
	return p, true
}

// shorten cuts a text that is shown.
func shorten(s string) string {
	n := 0
	for i := range s {
		if n == 20 {
			return s[:i] + "…"
		}
		n++
	}
	return s
}
