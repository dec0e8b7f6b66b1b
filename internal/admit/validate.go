package admit

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// source stands for the file in diagnostics.
const source = "kubernetes"

// lenient are codes of kinds that Malha does not act on: their objects may be for somebody else.
var lenient = []string{manifest.CodeNotYetKind, manifest.CodeUnknownKind, manifest.CodeIgnoredKind}

// ours reports whether an object is for Malha and for nobody else. Those of the Gateway API and Ingresses are for the controller of a
// class, which the object itself names at best by a name: a route names a Gateway only. What Malha can't do with one that may be
// somebody else's is a warning, and where it is Malha's after all its status says so.
func ours(o map[string]any) bool {
	version, _ := o["apiVersion"].(string)
	group, _, _ := strings.Cut(version, "/")
	spec, _ := o["spec"].(map[string]any)
	switch group {
	case "gateway.networking.k8s.io":
		return spec["gatewayClassName"] == class
	case "networking.k8s.io":
		return spec["ingressClassName"] == class
	}
	return true
}

// class is the name of Malha's GatewayClass and IngressClass.
const class = "malha"

// validate answers about an object of configuration. References to other objects are not followed: those may come later.
func (h *handler) validate(_ context.Context, r *admissionv1.AdmissionRequest) (*answer, error) {
	if r.Operation != admissionv1.Create && r.Operation != admissionv1.Update || r.SubResource != "" {
		return &answer{outcome: "not-checked"}, nil
	}
	object, err := tree(r.Object.Raw)
	if err != nil {
		return nil, err
	}
	found, strict := check(object), ours(object)
	a := &answer{outcome: "accepted"}
	var wrong []string
	for i := range found {
		d := &found[i]
		switch {
		case d.Severity == model.Error && strict && !slices.Contains(lenient, d.Code):
			wrong = append(wrong, line(d))
		case d.Severity != model.Info:
			a.warnings = append(a.warnings, line(d))
		}
	}
	switch {
	case len(wrong) == 0:
	case h.unchanged(r, object):
		// It was stored while nobody was asked, or before a check was made. Labels, finalizers and statuses can be changed still.
		a.outcome, a.warnings = "tolerated", append(wrong, a.warnings...)
	default:
		a.outcome = "refused"
		a.refused = r.Kind.Kind + " " + qualified(r.Namespace, r.Name) + " is not in order: " + strings.Join(wrong, "; ")
	}
	return a, nil
}

// tree reads an object as JSON has it, with whole numbers as they were written.
func tree(raw []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		return nil, fail(http.StatusBadRequest, "the object can't be read: %w", err)
	}
	if out == nil {
		return nil, fail(http.StatusBadRequest, "the review has no object")
	}
	return numbers(out).(map[string]any), nil
}

// numbers replaces json.Number, which manifest does not know.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		if err != nil {
			return v.String()
		}
		return f
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	}
	return v
}

// check is what analysis says of one object.
func check(object map[string]any) []model.Diagnostic {
	o, found := manifest.FromValue(source, object)
	if o.Kind == "" {
		return found
	}
	return append(found, config.Check(&o)...)
}

// unchanged reports whether an update leaves alone what is wrong: the object is being deleted, or all of it but its metadata and
// status is what it was.
func (h *handler) unchanged(r *admissionv1.AdmissionRequest, object map[string]any) bool {
	if meta, ok := object["metadata"].(map[string]any); ok && meta["deletionTimestamp"] != nil {
		return true
	}
	if r.Operation != admissionv1.Update || len(r.OldObject.Raw) == 0 {
		return false
	}
	old, err := tree(r.OldObject.Raw)
	if err != nil {
		return false
	}
	was := check(old)
	for _, d := range check(object) {
		if d.Severity == model.Error && !slices.Contains(was, d) {
			return false
		}
	}
	for _, o := range []map[string]any{old, object} {
		delete(o, "metadata")
		delete(o, "status")
		delete(o, "apiVersion")
	}
	return reflect.DeepEqual(old, object)
}

// line is a diagnostic without what the user sees anyway: the object.
func line(d *model.Diagnostic) string {
	s := d.Code + " "
	if d.Path != "" {
		s += d.Path + ": "
	}
	s += d.Message
	if d.Hint != "" {
		s += " (" + d.Hint + ")"
	}
	return s
}

func qualified(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}
