package file

import (
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

// ReadAll reads several folders and files once, as if they were one folder; "-" is standard input.
func ReadAll(paths ...string) *Result {
	all := &snapshot{}
	var ds []model.Diagnostic
	for _, p := range paths {
		found, more := scan(p, true)
		all.files, all.dirs, ds = append(all.files, found.files...), append(all.dirs, found.dirs...), append(ds, more...)
		all.bad, all.unread = all.bad || found.bad, append(all.unread, found.unread...)
	}
	return all.result(ds, Good{})
}

// Manifest is a file as it was read.
type Manifest struct {
	Name string
	Data []byte
}

// Manifests reads the files of a folder from which Read reads objects, without those that are no manifests, and says what is wrong
// with reading them: an error means that something is missing.
func Manifests(folder string) ([]Manifest, []model.Diagnostic) {
	s, ds := scan(folder, true)
	var out []Manifest
	for _, f := range s.files {
		if _, more, foreign := config.ParseFound(f.name, f.data); foreign {
			ds = append(ds, more...)
			continue
		}
		out = append(out, Manifest{f.name, f.data})
	}
	return out, ds
}
