package local

import (
	"context"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/model"
)

// edited takes a new state of the folder. It runs in the watcher's goroutine.
func (m *Mesh) edited(r *file.Result) {
	began := time.Now()
	if t := newest(m.folder); began.Sub(t) > 0 && began.Sub(t) < 2*time.Second {
		began = t // what counts for a person is the moment of the edit
	}
	m.tellForce(m.offer(r), began)
}

// tellForce says when every proxy has an edit. Nobody waits for that: the next edit may be what gets a proxy going that is late.
func (m *Mesh) tellForce(edit string, began time.Time) {
	if edit == "" { // comments and empty files are nothing to tell of
		return
	}
	m.spawn(func() {
		switch synced := m.awaitSync(m.inner, 10*time.Second); {
		case m.inner.Err() != nil:
		case !synced:
			m.note(EventProblem, "%s: not every proxy has it yet; see `malha status`", edit)
		default:
			m.note(EventNote, "%s: in force in %d ms", edit, time.Since(began).Milliseconds())
		}
	})
}

// offer brings into force what can be of a state of the folder, and says what is different by that. With nil it is the one that was
// offered last: what stands around it is another.
func (m *Mesh) offer(r *file.Result) (edit string) {
	from := m.begin()
	defer m.end()
	again := r == nil
	if again {
		r = from.offered
	}
	if r == nil {
		return "" // the mesh has ended
	}
	c, ds, fresh := m.fit(m.inner, from, merge(r.Objects, from.applied), merge(from.objects, from.applied), r.Diagnostics)
	if c == nil {
		m.ports.forget(fresh)
	}
	m.do(func() {
		before := m.diagnostics
		if again && slices.Equal(ds, before) {
			return
		}
		m.offered, m.diagnostics = r, ds
		if len(ds) > 0 && (model.HasErrors(ds) || !slices.Equal(ds, before)) {
			m.o.Events(Event{Kind: EventDiagnostics, Diagnostics: ds})
		}
		if c == nil {
			m.note(EventProblem, "the edit has errors: the last good configuration keeps serving")
			return
		}
		objects := without(c.Objects, r.Objects, m.applied)
		edit = m.describeEdit(objects)
		switch {
		case model.HasErrors(ds):
			m.note(EventProblem, "the edit has errors: what has one keeps serving as it was, the rest is in force")
		case edit == "" && model.HasErrors(before) && again:
			edit = "the folder has no error any more"
		case edit == "" && model.HasErrors(before):
			edit = "the folder is again as it was"
		}
		m.objects = objects
		m.enforce(c.Config, c.placed)
	})
	return edit
}

// lookAgain is how often a folder is looked at again in which something is wrong that can be put right outside of it.
const lookAgain = time.Second

// reconsider offers the folder again, until ctx ends, while something is wrong with it that nobody has to edit it for: a program
// is to be built, a folder to be made, a port to be given back.
func (m *Mesh) reconsider(ctx context.Context) {
	pause := lookAgain
	for slept(ctx, pause) {
		pause = lookAgain
		if m.wrong(codeCommand, codeDir, codePort, codeRoom) {
			began := time.Now()
			m.tellForce(m.offer(nil), began)
			pause = max(pause, 20*time.Since(began)) // of a large folder it takes seconds to find out
		}
	}
}

// wrong reports whether something that was offered last has an error of one of some codes, or without codes any.
func (m *Mesh) wrong(codes ...string) (wrong bool) {
	m.do(func() {
		wrong = slices.ContainsFunc(m.diagnostics, func(d model.Diagnostic) bool {
			return d.Severity == model.Error && (len(codes) == 0 || slices.Contains(codes, d.Code))
		})
	})
	return wrong
}

// describeEdit names the files whose objects differ from those in force; "" when none does. It runs in the loop.
func (m *Mesh) describeEdit(objects []config.Object) string {
	files := make(map[string]bool, len(objects)) // that there are
	for i := range objects {
		files[objects[i].Origin.File] = true
	}
	var edits []string
	add := func(file string) {
		edit := filepath.Base(file) + " changed"
		if !files[file] {
			edit = filepath.Base(file) + " deleted"
		}
		if !slices.Contains(edits, edit) {
			edits = append(edits, edit)
		}
	}
	was, is := byKey(m.objects), byKey(objects)
	for i := range objects {
		o := &objects[i]
		if before := was[config.KeyOf(o)]; before == nil || before.Origin.File != o.Origin.File || !sameContent(before, o) {
			add(o.Origin.File)
		}
	}
	for i := range m.objects {
		if is[config.KeyOf(&m.objects[i])] == nil {
			add(m.objects[i].Origin.File)
		}
	}
	if len(edits) > 3 {
		edits = append(edits[:3], "…")
	}
	return strings.Join(edits, ", ")
}

// newest returns when a manifest below dir was last written, or a folder: that is when files in it came, went or were renamed.
func newest(dir string) time.Time {
	var t time.Time
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && (d.IsDir() || file.IsManifest(d.Name())) {
			if info, err := d.Info(); err == nil && info.ModTime().After(t) {
				t = info.ModTime()
			}
		}
		return nil
	})
	return t
}
