package trial

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Result is what became of a case for one sender.
type Result struct {
	Suite    ident.Name    `json:"suite"`
	Case     string        `json:"case"`
	Origin   ident.Origin  `json:"origin"`
	From     string        `json:"from"`
	Failures []string      `json:"failures,omitempty"` // what was expected and what is; none: passed
	Walk     *explain.Walk `json:"walk,omitempty"`     // nil when the question could not be asked
}

// Passed reports whether everything is as expected.
func (r *Result) Passed() bool { return len(r.Failures) == 0 }

// request reads "[METHOD] URL".
func (c *Case) request(s string) error {
	fields := strings.Fields(s)
	switch len(fields) {
	case 1:
		c.Request.URL = fields[0]
	case 2:
		c.Request.Method, c.Request.URL = fields[0], fields[1]
	default:
		return fmt.Errorf("%q is not a request", s)
	}
	return c.Request.Check()
}

// Run asks every case of a suite.
func (s *Suite) Run(m *explain.Mesh) []Result {
	var out []Result
	for i := range s.Cases {
		c := &s.Cases[i]
		for _, from := range c.From {
			r := Result{Suite: s.Name, Case: c.Name, Origin: c.Origin, From: from}
			name, err := m.Resolve(from)
			if err == nil {
				r.Walk, err = m.Request(name, c.Request)
			}
			if err != nil {
				r.Failures = []string{err.Error()}
			} else {
				r.From = name.String()
				j := judge{walk: r.Walk}
				j.expect(&c.Expect)
				r.Failures = j.failures
			}
			out = append(out, r)
		}
	}
	return out
}

// judge compares a walk with an expectation.
type judge struct {
	walk     *explain.Walk
	failures []string
}

func (j *judge) fail(format string, args ...any) {
	j.failures = append(j.failures, fmt.Sprintf(format, args...))
}

// every wants something of all outcomes.
func (j *judge) every(what, want string, get func(*explain.Outcome) string, equal func(got, want string) bool) {
	if want == "" {
		return
	}
	var wrong []string
	for i := range j.walk.Outcomes {
		o := &j.walk.Outcomes[i]
		if got := get(o); !equal(got, want) {
			if got == "" {
				got = ending(o)
			}
			wrong = append(wrong, fmt.Sprintf("%s (%s %%)", got, number(o.Share*100)))
		}
	}
	if len(wrong) > 0 {
		j.fail("want %s %s, is %s", what, want, strings.Join(slices.Compact(wrong), ", "))
	}
}

// ending says how an outcome ends.
func ending(o *explain.Outcome) string {
	switch {
	case o.Answer != nil:
		return strings.TrimSpace("answered by " + o.Answer.By.String() + " with " + status(o.Answer) + " " + o.Answer.Flags)
	case o.External != "":
		return o.External + " outside the mesh"
	}
	return o.Workload.String()
}

func status(a *explain.Answer) string {
	if a.Status == 0 {
		return "the end of the connection"
	}
	return strconv.Itoa(a.Status)
}

func same(got, want string) bool { return got == want }

// sameName compares "ns/name" with "[ns/]name".
func sameName(got, want string) bool {
	_, bare, _ := strings.Cut(got, "/")
	return got == want || !strings.Contains(want, "/") && bare == want
}

func (j *judge) expect(e *Expectation) {
	served := func(get func(*explain.Outcome) string) func(*explain.Outcome) string {
		return func(o *explain.Outcome) string {
			if o.Answer != nil {
				return ""
			}
			return get(o)
		}
	}
	j.every("workload", e.Workload, served(func(o *explain.Outcome) string {
		if o.Workload.IsZero() {
			return ""
		}
		return o.Workload.String()
	}), sameName)
	j.every("version", e.Version, served(func(o *explain.Outcome) string { return o.Version }), same)
	j.subset(e.Subset)
	j.service(e.Service)
	j.split(e.Split)
	if e.Status != nil {
		j.every("status", strconv.Itoa(*e.Status), func(o *explain.Outcome) string {
			if o.Answer == nil {
				return ""
			}
			return status(o.Answer)
		}, same)
	}
	j.every("flags", e.Flags, func(o *explain.Outcome) string {
		if o.Answer == nil {
			return ""
		}
		return o.Answer.Flags
	}, same)
	j.denied(e)
	j.reply(e)
	j.action(e)
	j.sent(e)
	j.fault(e.Fault)
	j.mirrors(e.Mirrors)
	j.every("external", e.External, served(func(o *explain.Outcome) string { return o.External }), same)
	j.entrance(e)
	j.times(e)
	j.limited(e.Limits)
	j.choice(e)
}

func (j *judge) subset(want string) {
	if want == "" {
		return
	}
	var got []string
	for i := range j.walk.Branches {
		if b := &j.walk.Branches[i]; b.Subset != want {
			got = append(got, fmt.Sprintf("%s (%s %%)", orWord(b.Subset, "none"), number(b.Share*100)))
		}
	}
	switch {
	case len(j.walk.Branches) == 0:
		j.fail("want subset %s, is %s", want, j.nowhere())
	case len(got) > 0:
		j.fail("want subset %s, is %s", want, strings.Join(got, ", "))
	}
}

func (j *judge) nowhere() string {
	if j.walk.Answer != nil {
		return ending(&explain.Outcome{Answer: j.walk.Answer})
	}
	return "sent nowhere"
}

func orWord(s, word string) string {
	if s == "" {
		return word
	}
	return s
}

// isService compares a host with a host or the name of a service.
func isService(host, want string) bool {
	return host == want || strings.HasPrefix(host, want+".") && strings.HasSuffix(host, ".svc."+ident.ClusterDomain)
}

func (j *judge) service(want string) {
	if want == "" {
		return
	}
	if len(j.walk.Branches) == 0 {
		j.fail("want service %s, is %s", want, j.nowhere())
	}
	for i := range j.walk.Branches {
		if b := &j.walk.Branches[i]; !isService(b.Service, want) {
			j.fail("want service %s, is %s (%s %%)", want, b.Service, number(b.Share*100))
		}
	}
}

func (j *judge) split(want map[string]Share) {
	for _, key := range slices.Sorted(maps.Keys(want)) {
		got := 0.0
		for i := range j.walk.Outcomes {
			o := &j.walk.Outcomes[i]
			if o.Answer != nil && status(o.Answer) == key ||
				o.Answer == nil && (o.Subset == key || o.Version == key || o.External == key || o.Locality != "" && (o.Locality == key || strings.HasPrefix(o.Locality, key+"/")) || !o.Workload.IsZero() && sameName(o.Workload.String(), key)) {
				got += o.Share * 100
			}
		}
		if !want[key].Holds(got) {
			j.fail("want %s for %s, is %s %%", want[key], key, number(got))
		}
	}
}

// denied compares what authorization said.
func (j *judge) denied(e *Expectation) {
	share := 0.0
	by := ""
	for i := range j.walk.Outcomes {
		if a := j.walk.Outcomes[i].Answer; a != nil && a.Flags == "UAEX" {
			share += j.walk.Outcomes[i].Share
			by = a.Policy
		}
	}
	want := e.DeniedBy != "" || e.Denied != nil && *e.Denied
	switch {
	case want && share < 1-slack/100:
		j.fail("want it denied, is %s", j.endings())
	case e.Denied != nil && !*e.Denied && share > 0:
		j.fail("want it allowed, %s %% is denied: %s", number(share*100), orWord(by, "no ALLOW policy matches"))
	}
	if e.DeniedBy != "" && share > 0 {
		j.policy("denied by", e.DeniedBy, func(p *explain.Policy) bool {
			return p.Action == plan.Deny && p.Matched || p.Action == plan.Allow && !p.Matched && by == ""
		})
	}
	if e.AllowedBy != "" {
		if share > 0 {
			j.fail("want it allowed by %s, is %s", e.AllowedBy, j.endings())
			return
		}
		j.policy("allowed by", e.AllowedBy, func(p *explain.Policy) bool { return p.Action == plan.Allow && p.Matched })
	}
}

// policy wants that at every place where policies were asked, the one of a name did something.
func (j *judge) policy(what, name string, did func(*explain.Policy) bool) {
	places := [][]explain.Policy{}
	if len(j.walk.Policies) > 0 {
		places = append(places, j.walk.Policies)
	}
	for i := range j.walk.Branches {
		for k := range j.walk.Branches[i].Endpoints {
			if a := j.walk.Branches[i].Endpoints[k].Arrival; a != nil {
				places = append(places, a.Policies)
			}
		}
	}
	if len(places) == 0 {
		j.fail("want %s %s, but no policy was asked", what, name)
	}
	for _, policies := range places {
		var others []string
		found := false
		for i := range policies {
			p := &policies[i]
			switch {
			case p.DryRun || !did(p):
			case sameName(p.Name, name):
				found = true
			default:
				others = append(others, p.Name)
			}
		}
		if !found {
			j.fail("want %s %s, is %s", what, name, orWord(strings.Join(others, ", "), "none"))
			return
		}
	}
}

func (j *judge) endings() string {
	var out []string
	for i := range j.walk.Outcomes {
		o := &j.walk.Outcomes[i]
		out = append(out, fmt.Sprintf("%s (%s %%)", ending(o), number(o.Share*100)))
	}
	return strings.Join(out, ", ")
}

// Keep drops the cases whose name does not contain a text.
func (s *Suite) Keep(text string) {
	s.Cases = slices.DeleteFunc(s.Cases, func(c Case) bool { return !strings.Contains(c.Name, text) })
}
