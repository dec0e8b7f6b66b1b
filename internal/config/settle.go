package config

import (
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// Judge says what would be wrong with objects if they were in force together. An error among broken means that an object
// cannot be used. An error among loose means that it does not fit the rest of the world (it names what does not exist, its
// program is not there); they are not looked at while broken has errors.
type Judge func(objs []Object) (broken, loose []model.Diagnostic)

// Settle finds what of objs can be in force, each object for itself. before is what is in force now, the last good version of
// each object; nil: nothing is yet. An object that is broken gives way to its version in before, and is left out when it has
// none. So does one that does not fit, unless it is in force as it is: then the world has changed around it, and it stays, with
// what it cannot do.
//
// It returns the objects that settle, never nil, and everything that is wrong, of which with a before also what became of each object that
// gave way. settled is false when an error remains that belongs to no object.
func Settle(objs, before []Object, judge Judge) (sound []Object, found []model.Diagnostic, settled bool) {
	s := settling{objs: objs, old: make(map[Key]*Object, len(before)), now: map[Key]state{}}
	for i := range before {
		s.old[KeyOf(&before[i])] = &before[i]
	}
	for {
		sound = s.set()
		broken, loose := judge(sound)
		if model.HasErrors(broken) {
			if s.giveWay(sound, broken, s.back) {
				continue
			}
		} else if s.giveWay(sound, loose, s.takeBack) {
			continue
		}
		s.last(sound, broken, loose)
		if before != nil {
			s.outcomes()
		}
		return sound, s.report.Diagnostics(), !model.HasErrors(broken)
	}
}

// state is which version of an object is tried.
type state uint8

const (
	asWritten state = iota
	asBefore
	leftOut
)

type settling struct {
	objs   []Object
	old    map[Key]*Object
	now    map[Key]state
	report manifest.Report
	said   map[model.Diagnostic]bool
}

// set returns the objects that are tried.
func (s *settling) set() []Object {
	out := make([]Object, 0, len(s.objs))
	have := map[Key]bool{}
	for i := range s.objs {
		o := &s.objs[i]
		k := KeyOf(o)
		switch s.now[k] {
		case asWritten:
			out = append(out, *o) // also one that stands twice, which is for the judge to say
		case asBefore:
			if !have[k] {
				out = append(out, *s.old[k])
			}
		}
		have[k] = true
	}
	return out
}

// giveWay has every object with an error give way, if it can, and reports what is wrong with it.
func (s *settling) giveWay(tried []Object, ds []model.Diagnostic, how func(Key) bool) (any bool) {
	if !model.HasErrors(ds) {
		return false
	}
	places := placesOf(tried)
	gone := map[Key]bool{}
	for i := range ds {
		if ds[i].Severity != model.Error {
			continue
		}
		k, ok := places.owner(&ds[i])
		if !ok || gone[k] || !how(k) {
			continue
		}
		gone[k] = true
	}
	for i := range ds {
		if k, ok := places.owner(&ds[i]); ok && gone[k] {
			s.say(ds[i])
		}
	}
	return len(gone) > 0
}

// back goes back to the version before, if that is another one, or else leaves the object out.
func (s *settling) back(k Key) bool {
	if s.now[k] == leftOut {
		return false
	}
	if s.now[k] == asWritten && s.changed(k) {
		s.now[k] = asBefore
		return true
	}
	s.now[k] = leftOut
	return true
}

// takeBack goes back to what is in force of the object, if that is something else.
func (s *settling) takeBack(k Key) bool {
	if s.now[k] != asWritten || s.old[k] != nil && !s.changed(k) {
		return false
	}
	return s.back(k)
}

// changed reports whether there is an earlier version, and not just that one is written.
func (s *settling) changed(k Key) bool {
	old, same := s.old[k], 0
	if old == nil {
		return false
	}
	for i := range s.objs {
		if o := &s.objs[i]; KeyOf(o) == k {
			if !o.Same(old) {
				return true
			}
			same++
		}
	}
	return same > 1
}

// last reports what is left to say of the objects that settled. What is odd about a version before was said in its time.
func (s *settling) last(tried []Object, lists ...[]model.Diagnostic) {
	places := places{}
	if len(s.now) > 0 {
		places = placesOf(tried)
	}
	for _, ds := range lists {
		for i := range ds {
			if k, ok := places.owner(&ds[i]); ok && s.now[k] == asBefore && ds[i].Severity != model.Error {
				continue
			}
			s.say(ds[i])
		}
	}
}

func (s *settling) say(d model.Diagnostic) {
	if s.said[d] {
		return
	}
	if s.said == nil {
		s.said = map[model.Diagnostic]bool{}
	}
	s.said[d] = true
	s.report.Add(d)
}

// outcomes says what is in force of the objects that gave way.
func (s *settling) outcomes() {
	for i := range s.objs {
		o := &s.objs[i]
		k := KeyOf(o)
		switch s.now[k] {
		case asBefore:
			s.report.Warning(manifest.CodeGaveWay, o.Root(), "correct it, and it comes into force", "it keeps serving as it was before this change")
		case leftOut:
			s.report.Add(leftOutOf(o))
		}
		delete(s.now, k) // once for an object that stands twice
	}
}

// Outcome reports whether a diagnostic only says what became of an object that has errors.
func Outcome(d model.Diagnostic) bool {
	return d.Code == manifest.CodeGaveWay || d.Code == manifest.CodeUnguarded
}

// leftOutOf says that an object is not in force, and what that means.
func leftOutOf(o *Object) model.Diagnostic {
	d := model.Diagnostic{
		Code: manifest.CodeGaveWay, Severity: model.Warning, Origin: o.Origin, Hint: "correct it, and it comes into force",
		Message: "it is not in force, and no version before it is",
	}
	if Guards(o.Kind) {
		d.Code, d.Severity = manifest.CodeUnguarded, model.Error
		d.Message += ": nobody is refused who would be by it"
		d.Hint = "correct it now, or stop what it should guard: it is as open as without it"
	}
	return d
}

// guards are the kinds that refuse somebody something, in every dialect.
var guards = map[string]bool{
	"AuthorizationPolicy": true, "PeerAuthentication": true, "RequestAuthentication": true, // Istio; the first of Linkerd too
	"Server": true, "ServerAuthorization": true, "MeshTLSAuthentication": true, "NetworkAuthentication": true, // Linkerd
	"EgressNetwork": true,
	"TrafficTarget": true, "IdentityBinding": true, // SMI
}

// Guards reports whether the objects of a kind refuse somebody something.
func Guards(kind string) bool { return guards[kind] }

// Unguarded says of every object that is left out for an error in ds, and should refuse somebody something, that it does not.
func Unguarded(objs []Object, ds []model.Diagnostic) []model.Diagnostic {
	if !model.HasErrors(ds) {
		return nil
	}
	_, bad := wrong(objs, ds)
	var out []model.Diagnostic
	for i := range objs {
		if o := &objs[i]; guards[o.Kind] && bad[KeyOf(o)] {
			out = append(out, leftOutOf(o))
		}
	}
	return out
}

// Wrong returns a function that reports whether a diagnostic is about one of objs that has an error in ds.
func Wrong(objs []Object, ds []model.Diagnostic) func(model.Diagnostic) bool {
	places, bad := wrong(objs, ds)
	return func(d model.Diagnostic) bool {
		k, ok := places.owner(&d)
		return ok && bad[k]
	}
}

func wrong(objs []Object, ds []model.Diagnostic) (places, map[Key]bool) {
	p, bad := placesOf(objs), map[Key]bool{}
	for i := range ds {
		if k, ok := p.owner(&ds[i]); ok && ds[i].Severity == model.Error {
			bad[k] = true
		}
	}
	return p, bad
}

// places finds the object that a diagnostic is about.
type places map[string][]*Object

func placesOf(objs []Object) places {
	out := make(places, len(objs))
	for i := range objs {
		id := placeID(objs[i].Kind, objs[i].Name.Namespace, objs[i].Name.Name)
		out[id] = append(out[id], &objs[i])
	}
	return out
}

func placeID(kind, namespace, name string) string { return kind + " " + namespace + "/" + name }

// owner returns the object of a diagnostic. Kinds of different groups can have one name: then it is the object of its file that
// begins last before its line.
func (p places) owner(d *model.Diagnostic) (Key, bool) {
	found := p[placeID(d.Origin.Kind, d.Origin.Namespace, d.Origin.Name)]
	var best *Object
	for _, o := range found {
		if len(found) > 1 && (o.Origin.File != d.Origin.File || o.Origin.Line > d.Origin.Line) {
			continue
		}
		if best == nil || o.Origin.Line > best.Origin.Line {
			best = o
		}
	}
	if best == nil {
		return Key{}, false
	}
	return KeyOf(best), true
}
