package local

import (
	"fmt"

	"github.com/malha-mesh/malha/internal/model"
)

// EventKind says what an Event is about.
type EventKind string

// The kinds of event.
const (
	EventStep        EventKind = "step"        // something begins
	EventNote        EventKind = "note"        // something came out well
	EventProblem     EventKind = "problem"     // something is wrong, with what to do; the mesh goes on
	EventDiagnostics EventKind = "diagnostics" // about the configuration
	EventReady       EventKind = "ready"       // once: the mesh is up; Status has the table
	EventFailed      EventKind = "failed"      // the mesh ends, or does not become ready in time
)

// Event is something that a person who watches the mesh should know.
type Event struct {
	Kind        EventKind          `json:"kind"`
	Text        string             `json:"text,omitempty"`
	Diagnostics []model.Diagnostic `json:"diagnostics,omitempty"`
	Status      *Status            `json:"status,omitempty"`
}

// InvalidError says that the configuration a mesh should start with has errors.
type InvalidError struct {
	Folder      string
	Diagnostics []model.Diagnostic
}

func (e *InvalidError) Error() string {
	n := 0
	for _, d := range e.Diagnostics {
		if d.Severity == model.Error {
			n++
		}
	}
	them := "them"
	if n == 1 {
		them = "it"
	}
	return fmt.Sprintf("%s in %s; nothing was started: correct %s and run `malha up` again", plural(n, "error"), e.Folder, them)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
