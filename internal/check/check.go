// Package check finds out whether a cluster is fit for the mesh, and whether the mesh in it is well: what `malha check` prints.
//
// A check is a question with a name; its answer is nothing, or a Problem with the cause, the fix and the page to read. Checks only
// read, ask one after the other, and share what they read (facts.go). What can't be found out, for want of a right, is a warning of
// its own and never passes as well.
package check

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/malha-mesh/malha/internal/cluster"
)

// Level is how bad an answer is.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// Result is the answer to one check.
type Result struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Cause string `json:"cause,omitempty"`
	Fix   string `json:"fix,omitempty"`
	Page  string `json:"page,omitempty"`
}

// Section is a heading with its results.
type Section struct {
	Name    string   `json:"name"`
	Results []Result `json:"results"`
}

// Worst is the worst level of any result.
func Worst(sections []Section) Level {
	worst := OK
	for _, s := range sections {
		for _, r := range s.Results {
			if r.Level == Error || r.Level == Warning && worst == OK {
				worst = r.Level
			}
		}
	}
	return worst
}

// Options say what is checked.
type Options struct {
	Cluster   *cluster.Cluster
	Namespace string   // of the mesh
	Only      string   // proxies of this namespace alone; "" of all
	Version   string   // of this program
	Adopt     []string // before an installation: what it would adopt
	Now       func() time.Time
	// Each is called with every section as it is done.
	Each func(Section)
}

// problem is an answer that is not OK.
type problem struct {
	level            Level
	cause, fix, page string
}

func (p *problem) Error() string { return p.cause + "; " + p.fix }

func wrong(fix, page, format string, args ...any) error {
	return &problem{Error, fmt.Sprintf(format, args...), fix, page}
}

func doubtful(fix, page, format string, args ...any) error {
	return &problem{Warning, fmt.Sprintf(format, args...), fix, page}
}

// check is one question.
type check struct {
	name  string
	fatal bool // what follows can't be asked when this fails
	ask   func(context.Context) error
}

// section is a heading with its questions.
type section struct {
	name   string
	checks []check
}

// Before asks whether the mesh can be installed.
func Before(ctx context.Context, o Options) []Section { return run(ctx, &o, newFacts(&o).before()) }

// Control asks whether the control plane of the mesh is well.
func Control(ctx context.Context, o Options) []Section { return run(ctx, &o, newFacts(&o).control()) }

// Proxies asks that, and whether each proxy is.
func Proxies(ctx context.Context, o Options) []Section {
	f := newFacts(&o)
	return run(ctx, &o, append(f.control(), f.data()...))
}

func run(ctx context.Context, o *Options, sections []section) []Section {
	var out []Section
	for _, s := range sections {
		done := Section{Name: s.name}
		stop := false
		for _, c := range s.checks {
			r := answer(c.name, c.ask(ctx))
			done.Results = append(done.Results, r)
			if stop = c.fatal && r.Level == Error; stop {
				break
			}
		}
		out = append(out, done)
		if o.Each != nil {
			o.Each(done)
		}
		if stop || ctx.Err() != nil {
			break
		}
	}
	return out
}

func answer(name string, err error) Result {
	r := Result{Name: name, Level: OK}
	var p *problem
	var f *cluster.Failure
	switch {
	case err == nil:
	case errors.As(err, &p):
		r.Level, r.Cause, r.Fix, r.Page = p.level, p.cause, p.fix, p.page
	case cluster.IsForbidden(err) && errors.As(err, &f):
		r.Level, r.Cause, r.Fix = Warning, "this could not be found out: "+f.Cause, f.Fix
	case errors.As(err, &f):
		r.Level, r.Cause, r.Fix = Error, f.Cause, f.Fix
	default:
		r.Level, r.Cause = Error, err.Error()
	}
	return r
}
