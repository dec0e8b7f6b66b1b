package file

import "github.com/malha-mesh/malha/internal/model"

// ReadAll reads several folders and files once, as if they were one folder.
func ReadAll(paths ...string) *Result {
	all := &snapshot{}
	var ds []model.Diagnostic
	for _, p := range paths {
		found, more := scan(p)
		all.files, ds = append(all.files, found.files...), append(ds, more...)
	}
	return all.result(ds, Good{})
}
