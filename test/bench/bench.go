package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bench is what all cases share.
type bench struct {
	tools   *tools
	rounds  int
	seconds float64 // of load for one subject in one round
}

// A benchCase is one group of rows: what is compared, and what its figures have to reach.
type benchCase struct {
	id  string
	run func(*bench, *arena) (*result, error)
}

// cases in the order in which they run and are reported.
var cases = []benchCase{
	{"h1", caseH1}, {"floor", caseFloor}, {"latency", caseLatency}, {"h2", caseH2},
	{"mesh", caseMesh}, {"meshlatency", caseMeshLatency}, {"tls", caseTLS}, {"tls64k", caseTLS64K}, {"handshakes", caseHandshakes},
	{"tcp", caseTCP}, {"tcptls", caseTCPTLS}, {"telemetry", caseTelemetry},
	{"memory", caseMemory}, {"growth", caseGrowth}, {"start", caseStart}, {"allocations", caseAllocations},
}

// result is what a case found.
type result struct {
	id       string
	title    string
	method   string // what was done, in a sentence or two
	columns  []metric
	subjects []*subject
	goals    []goal
	notes    []string
	configs  []config
}

// goal is a row of the first table: a figure, and what it has to be.
type goal struct {
	what    string
	got     float64
	limit   float64
	atLeast bool
	unit    string // "×", "MB", "ms", …
}

func (g goal) reached() bool {
	if g.atLeast {
		return g.got >= g.limit
	}
	return g.got <= g.limit
}

type config struct{ name, text string }

// subject is one thing under test: a proxy, or a pair of them.
type subject struct {
	name   string
	procs  []*process // whose CPU time counts
	port   int
	rounds []sample
}

func (s *subject) series(m metric) []float64 {
	out := make([]float64, 0, len(s.rounds))
	for _, r := range s.rounds {
		if v, ok := r[m]; ok {
			out = append(out, v)
		}
	}
	return out
}

// ratio is the median of the ratios within each round of a to the best of others.
func ratio(m metric, a *subject, best func(...float64) float64, others ...*subject) float64 {
	var out []float64
	for i := range a.rounds {
		var v []float64
		for _, o := range others {
			v = append(v, o.rounds[i][m])
		}
		out = append(out, a.rounds[i][m]/best(v...))
	}
	return median(out)
}

func least(v ...float64) float64 { return slices.Min(v) }
func most(v ...float64) float64  { return slices.Max(v) }

// by returns the subject with this name, nil when it is not there.
func (r *result) by(name string) *subject {
	for _, s := range r.subjects {
		if s.name == name {
			return s
		}
	}
	return nil
}

// below adds the goal that our figure is at most limit × the least of these peers. Peers that are not there are left out;
// with none of them there is no goal, and a note.
func (r *result) below(what string, m metric, limit float64, peers ...string) {
	r.against(what, m, limit, false, peers)
}

// above is below for figures of which more is better.
func (r *result) above(what string, m metric, limit float64, peers ...string) {
	r.against(what, m, limit, true, peers)
}

func (r *result) against(what string, m metric, limit float64, atLeast bool, peers []string) {
	var there []*subject
	for _, p := range peers {
		if s := r.by(p); s != nil {
			there = append(there, s)
		}
	}
	if len(there) == 0 {
		r.notes = append(r.notes, fmt.Sprintf("%s: not measured, %s is not installed.", what, strings.Join(peers, " nor ")))
		return
	}
	best := least
	if atLeast {
		best = most
	}
	r.goals = append(r.goals, goal{what: what, got: ratio(m, r.subjects[0], best, there...), limit: limit, atLeast: atLeast, unit: "×"})
}

// add makes processes a subject, and keeps their configuration for the report.
func (r *result) add(name string, port int, procs ...*process) *subject {
	s := &subject{name: name, port: port, procs: procs}
	r.subjects = append(r.subjects, s)
	for _, p := range procs {
		r.configs = append(r.configs, config{p.name, p.config})
	}
	return s
}

// shared is the share of the proxy's processor, in percent, from which on a round says more about others than about the proxy.
const shared = 20

// interleave measures the subjects in turn, round by round: A B C, then C B A, so that a drift of the machine favours nobody.
// A round in which somebody else took much of the proxy's processor is measured again; after as many of these as
// rounds were asked for, all count.
func (b *bench) interleave(r *result, measure func(*subject) (sample, error)) error {
	repeated := 0
	for n := 0; n < b.rounds; {
		order := slices.Clone(r.subjects)
		if n%2 == 1 {
			slices.Reverse(order)
		}
		others, round := 0.0, map[*subject]sample{}
		for _, s := range order {
			m, err := measure(s)
			if err != nil {
				return fmt.Errorf("%s: %w%s", s.name, err, tails(s.procs))
			}
			round[s] = m
			others = max(others, m[foreign])
			fmt.Printf("%-12s round %d  %-14s %s\n", r.id, n+1, s.name, m.String(r.columns))
		}
		if others > shared && repeated < b.rounds {
			repeated++
			fmt.Printf("%-12s round %d  is measured again: others took %.0f %% of the proxy's processor\n", r.id, n+1, others)
			continue
		}
		for _, s := range r.subjects {
			s.rounds = append(s.rounds, round[s])
		}
		n++
	}
	if repeated > 0 {
		r.notes = append(r.notes, fmt.Sprintf("Rounds measured again because others took more than %d %% of the proxy's processor: %d.", shared, repeated))
	}
	return nil
}

func tails(ps []*process) string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "\n%s wrote: %s", p.name, p.tail())
	}
	return b.String()
}

func (m sample) String(columns []metric) string {
	var b strings.Builder
	for _, c := range columns {
		if v, ok := m[c]; ok {
			fmt.Fprintf(&b, "%12s %s", format(c, v), c)
		}
	}
	return b.String()
}

// saturate measures the CPU time of a subject for each request of a load, and the rate.
func saturate(s *subject, load func() (loadResult, error)) (sample, error) {
	var l loadResult
	spent, others, err := around(s.procs, func() (err error) { l, err = load(); return err })
	if err != nil {
		return nil, err
	}
	if l.Requests == 0 {
		return nil, fmt.Errorf("no request was answered")
	}
	m := sample{cpu: float64(spent.Nanoseconds()) / 1e3 / l.Requests, rate: l.rate(), foreign: others}
	if len(s.procs) > 0 {
		mem, err := memoryOf(s.procs[0].pid())
		if err != nil {
			return nil, err
		}
		m[rss] = mem.rss
	}
	return m, nil
}

// runCase runs one case in a folder and with processes of its own.
func (b *bench) runCase(c benchCase) (*result, error) {
	dir, err := os.MkdirTemp("", "malha-bench-"+c.id+"-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	a := &arena{dir: dir, tools: b.tools}
	r, err := c.run(b, a)
	a.close()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.id, err)
	}
	r.id = c.id
	r.notes = append(r.notes, a.warnings...)
	for i := range r.configs {
		r.configs[i].text = strings.ReplaceAll(r.configs[i].text, dir, "DIR")
	}
	return r, nil
}

// ports returns n free ports.
func ports(n int) ([]int, error) {
	out := make([]int, n)
	for i := range out {
		var err error
		if out[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
