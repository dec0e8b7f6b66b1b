package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Report collects diagnostics. The zero Report is ready to use; it belongs to one goroutine.
type Report struct {
	found  []model.Diagnostic
	errors int // among found
}

// Error reports a mistake at a place. hint may be "".
func (r *Report) Error(code string, at Cursor, hint, format string, args ...any) {
	r.add(code, model.Error, at, hint, format, args...)
}

// Warning reports something that works, though probably not as meant.
func (r *Report) Warning(code string, at Cursor, hint, format string, args ...any) {
	r.add(code, model.Warning, at, hint, format, args...)
}

// Info reports something worth knowing.
func (r *Report) Info(code string, at Cursor, hint, format string, args ...any) {
	r.add(code, model.Info, at, hint, format, args...)
}

func (r *Report) add(code string, severity model.Severity, at Cursor, hint, format string, args ...any) {
	origin := ident.Origin{}
	if at.object != nil {
		origin = at.object.Origin
	}
	if at.line > 0 {
		origin.Line = at.line
	}
	r.Add(model.Diagnostic{Code: code, Severity: severity, Origin: origin, Path: at.path, Hint: hint, Message: fmt.Sprintf(format, args...)})
}

// Limits on what one diagnostic says of what somebody else wrote, in bytes: it is read by people, and in statuses.
const (
	mostMessage = 2000
	mostPath    = 500
	mostName    = 253
)

// Add reports d. What it quotes stays on one line.
func (r *Report) Add(d ...model.Diagnostic) {
	at := len(r.found)
	r.found = append(r.found, d...)
	for i := at; i < len(r.found); i++ {
		d := &r.found[i]
		d.Message, d.Hint, d.Path = oneLine(d.Message, mostMessage), oneLine(d.Hint, mostMessage), oneLine(d.Path, mostPath)
	}
	r.errors += countErrors(d)
}

func countErrors(ds []model.Diagnostic) (n int) {
	for i := range ds {
		if ds[i].Severity == model.Error {
			n++
		}
	}
	return n
}

// Broken reports whether the object that is being translated has an error: those of one object stand together, at the end.
func (r *Report) Broken(o *Object) bool {
	for i := len(r.found) - 1; i >= 0; i-- {
		d := &r.found[i]
		if d.Origin.Kind != o.Kind || d.Origin.Namespace != o.Name.Namespace || d.Origin.Name != o.Name.Name {
			return false
		}
		if d.Severity == model.Error {
			return true
		}
	}
	return false
}

// Len returns how many diagnostics there are, and how many of them are errors.
func (r *Report) Len() (all, errors int) { return len(r.found), r.errors }

// Diagnostics returns everything that was reported, by file, line, path and code.
func (r *Report) Diagnostics() []model.Diagnostic {
	slices.SortStableFunc(r.found, func(a, b model.Diagnostic) int {
		return cmp.Or(
			cmp.Compare(a.Origin.File, b.Origin.File),
			cmp.Compare(a.Origin.Line, b.Origin.Line),
			cmp.Compare(a.Path, b.Path),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Message, b.Message),
		)
	})
	return r.found
}

// Besides keeps, of what was reported from the first on, what does not follow from the mistakes before it: a mistake of a field
// makes everything above it and below it doubtful.
func (r *Report) Besides(object, first int) {
	mistakes := r.found[object:first:first]
	r.found = append(r.found[:first], slices.DeleteFunc(slices.Clone(r.found[first:]), func(d model.Diagnostic) bool {
		return d.Code == CodeInternal || slices.ContainsFunc(mistakes, func(m model.Diagnostic) bool {
			return m.Severity == model.Error && (within(d.Path, m.Path) || within(m.Path, d.Path))
		})
	})...)
	r.errors = countErrors(r.found)
}

// within reports whether a path is another one, or below it.
func within(path, above string) bool {
	rest, ok := strings.CutPrefix(path, above)
	return ok && (above == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
}
