package manifest

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Report collects diagnostics. The zero Report is ready to use; it belongs to one goroutine.
type Report struct {
	found []model.Diagnostic
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

// Add reports d as it is.
func (r *Report) Add(d ...model.Diagnostic) { r.found = append(r.found, d...) }

// Len returns how many diagnostics there are, and how many of them are errors.
func (r *Report) Len() (all, errors int) {
	for _, d := range r.found {
		if d.Severity == model.Error {
			errors++
		}
	}
	return len(r.found), errors
}

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
