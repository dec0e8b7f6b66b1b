package file

import "github.com/malha-mesh/malha/internal/model"

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
