package model

import "github.com/malha-mesh/malha/internal/ident"

// Severity says how bad a Diagnostic is.
type Severity string

// The severities. An Error keeps its object out of force; the last good version of that keeps serving.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Codes of references that do not resolve: found for the whole mesh by world.Check, and for one proxy by compile.
const (
	CodeNoHost        = "MALHA0801" // a destination host that does not exist
	CodeNoSubset      = "MALHA0802" // a subset that no DestinationRule defines
	CodeNoPort        = "MALHA0803" // a destination port that the service does not have
	CodeAmbiguousPort = "MALHA0804" // a destination without port, of a service with several
	CodeNoSecret      = "MALHA0870" // a Secret that does not exist, or is not for the proxy
)

// Diagnostic is something the user should know about what they wrote. Translators, scope and compile return them as
// values; the command line, statuses and the dashboard only render them.
type Diagnostic struct {
	Code     string       `json:"code"` // stable, "MALHA0101"; docs/diagnostics.md has an entry for each
	Severity Severity     `json:"severity"`
	Origin   ident.Origin `json:"origin"`         // object, file and line
	Path     string       `json:"path,omitempty"` // of the field, "spec.http[0].route[1].weight"
	Message  string       `json:"message"`        // what is wrong, and the cause
	Hint     string       `json:"hint,omitempty"` // the likely next step
}

// String returns one line: place, severity, code, object, message, hint.
func (d Diagnostic) String() string {
	s := string(d.Severity) + " " + d.Code
	if p := d.Origin.Place(); p != "" {
		s = p + ": " + s
	}
	if object := d.Object(); object != "" {
		s += ": " + object
	}
	if d.Path != "" {
		s += " " + d.Path
	}
	s += ": " + d.Message
	if d.Hint != "" {
		s += " (" + d.Hint + ")"
	}
	return s
}

// Object returns what it is about: "Kind namespace/name", "Kind name" of what is in no namespace, "Kind" when it is about all objects of
// the kind; "" when it is about none.
func (d Diagnostic) Object() string {
	switch o := &d.Origin; {
	case o.Kind == "" || o.Name == "":
		return o.Kind
	case ClusterScoped(o.Kind):
		return o.Kind + " " + o.Name
	default:
		return o.Kind + " " + o.Namespace + "/" + o.Name
	}
}

// ClusterScoped reports whether the objects of a kind are in no namespace. Those that are written down are kept under the default one.
func ClusterScoped(kind string) bool {
	return kind == "Namespace" || kind == "GatewayClass" || kind == "IngressClass"
}

// HasErrors reports whether ds holds an Error.
func HasErrors(ds []Diagnostic) bool {
	for _, d := range ds {
		if d.Severity == Error {
			return true
		}
	}
	return false
}
