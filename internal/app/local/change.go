package local

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
)

// order is what somebody wants changed.
type order struct {
	verb      string // apply or delete
	files     []ManifestFile
	namespace string // of the objects that name none; "" is the default one
	missingOK bool   // a delete of what is not there is no mistake
	dryRun    bool
}

// objects reads the files of an order.
func (w *order) objects(a *Applied) []config.Object {
	var objects []config.Object
	for _, f := range w.files {
		found, ds := config.Parse(f.Name, f.Data)
		objects, a.Diagnostics = append(objects, found...), append(a.Diagnostics, ds...)
	}
	if len(objects) == 0 && len(a.Diagnostics) == 0 {
		a.Refused = append(a.Refused, "no object in what was given; a manifest starts with apiVersion, kind and metadata")
	}
	if w.namespace == "" {
		return objects
	}
	for i := range objects {
		o := &objects[i]
		switch {
		case model.ClusterScoped(o.Kind):
		case !saysNamespace(o):
			o.Name.Namespace, o.Origin.Namespace = w.namespace, w.namespace
			*o = *withNamespace(o)
		case o.Name.Namespace != w.namespace:
			a.Refused = append(a.Refused, fmt.Sprintf("%s: %s %s names its namespace, and it is not %s; leave out -n, or the namespace there",
				o.Origin.Place(), o.Kind, o.Name, w.namespace))
		}
	}
	return objects
}

// change applies or deletes objects: all of them, or none.
func (m *Mesh) change(ctx context.Context, w order) *Applied {
	began := time.Now()
	a := &Applied{}
	objects := w.objects(a)
	if !a.OK() {
		return a
	}
	if m.carryOut(ctx, w, objects, a) {
		edit := ""
		if m.wrong() { // it may be what an edit of the folder lacked
			edit = m.offer(nil)
		}
		a.Synced = m.awaitSync(ctx, 5*time.Second)
		if text := describeChanges(a.Changes); a.Synced && text != "" {
			if edit != "" {
				text += ", " + edit
			}
			m.note(EventNote, "%s: in force in %d ms", text, time.Since(began).Milliseconds())
		}
	}
	a.Took = time.Since(began)
	return a
}

// basis is what a change of the configuration starts from. Nothing of it changes before the change is over.
type basis struct {
	offered          *file.Result
	objects, applied []config.Object
	placed           placement.Placement
	secrets          []model.Secret
}

// begin waits for the turn of a change and begins it; end has to be called after it. What thousands of objects mean takes
// seconds to find out: the loop must not wait for that, so changes take turns here and only their results go to the loop.
func (m *Mesh) begin() (from basis) {
	m.turn.Lock()
	m.do(func() {
		m.changing = true
		from = basis{offered: m.offered, objects: m.objects, applied: m.applied, placed: m.placed, secrets: m.config.Secrets}
	})
	return from
}

// end gives the turn to the next change.
func (m *Mesh) end() {
	m.do(func() {
		m.changing = false
		for _, name := range m.gone {
			m.freePorts(name)
		}
		m.gone = nil
	})
	m.turn.Unlock()
}

// freePorts gives back the ports of a unit that has gone, unless it is to come again. It runs in the loop.
func (m *Mesh) freePorts(name ident.Name) {
	switch {
	case m.changing: // which may be giving it its place
		m.gone = append(m.gone, name)
	case !m.configured(name):
		m.ports.release(name)
	}
}

// carryOut changes what is in force, as an order says, unless something is wrong with it; true when it did.
func (m *Mesh) carryOut(ctx context.Context, w order, objects []config.Object, a *Applied) bool {
	from := m.begin()
	defer m.end()
	var after, all []config.Object
	if w.verb == "delete" {
		after, a.Changes, a.Refused = deleteFrom(from.objects, from.applied, objects, w.missingOK)
		all = merge(from.objects, after)
	} else {
		after, a.Changes = applyTo(from.objects, from.applied, objects)
		all = merge(from.objects, after)
		if twice(objects) {
			// They would hide each other from merge: the translator has to see both, in the order in which they were given.
			all = merge(all, objects)
		} else {
			all = append(all, passedOver(objects)...) // which warns of them
		}
	}
	if len(a.Refused) > 0 {
		return false
	}
	now := merge(from.objects, from.applied)
	c, ds, fresh := m.fit(ctx, from, all, now, nil)
	var known []model.Diagnostic
	if model.HasErrors(ds) {
		_, known, _ = m.fit(ctx, from, now, now, nil) // which has its ports
	}
	// All or nothing, of what is new: an error that is there already is not in the way.
	ds = slices.DeleteFunc(ds, func(d model.Diagnostic) bool {
		return config.Outcome(d) || c != nil && d.Severity == model.Error && slices.Contains(known, d)
	})
	a.Diagnostics = relevant(ds, objects, model.HasErrors(ds))
	if c == nil || model.HasErrors(ds) || w.dryRun {
		m.ports.forget(fresh)
		return false
	}
	m.do(func() {
		m.applied = after
		if err := saveOverlay(m.overlayPath(), m.folder, after); err != nil {
			m.log.Warn("cannot keep what was applied for after a crash", "error", err)
			a.Diagnostics = append(a.Diagnostics, model.Diagnostic{Code: codeUnkept, Severity: model.Warning,
				Message: fmt.Sprintf("it is in force, and would be forgotten in a crash: %v", err), Hint: "make room in the state directory and apply it again"})
		}
		m.enforce(c.Config, c.placed)
	})
	return true
}

// describeChanges says what changed; "" when nothing did.
func describeChanges(cs []Change) string {
	cs = slices.DeleteFunc(slices.Clone(cs), func(c Change) bool { return !c.Acts() })
	switch len(cs) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%s %s %s", cs[0].Kind, cs[0].Name, cs[0].Action)
	}
	return plural(len(cs), "object") + " changed"
}

// passedOver returns the objects that nothing on one machine acts on.
func passedOver(objects []config.Object) []config.Object {
	return slices.DeleteFunc(slices.Clone(objects), func(o config.Object) bool { return !config.PassesOver(&o) })
}

// twice reports whether an object stands in a list more than once.
func twice(objects []config.Object) bool {
	seen := make(map[config.Key]bool, len(objects))
	for i := range objects {
		k := config.KeyOf(&objects[i])
		if seen[k] {
			return true
		}
		seen[k] = true
	}
	return false
}

// relevant keeps the diagnostics about the objects that somebody gave, and with all, which is when it came to errors,
// every error: an applied object may break one of the folder.
func relevant(ds []model.Diagnostic, objects []config.Object, all bool) []model.Diagnostic {
	type about struct {
		kind string
		name ident.Name
	}
	given := make(map[about]bool, len(objects))
	for i := range objects {
		given[about{objects[i].Kind, objects[i].Name}] = true
	}
	return slices.DeleteFunc(slices.Clone(ds), func(d model.Diagnostic) bool {
		return !(all && d.Severity == model.Error) && !given[about{d.Origin.Kind, ident.Name{Namespace: d.Origin.Namespace, Name: d.Origin.Name}}]
	})
}
