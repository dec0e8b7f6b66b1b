// Package file is the configuration source of one machine: a folder (or one file) of manifests, watched.
//
// In come *.yaml, *.yml and *.json files; out goes a Result for every change of their content: the configuration of every
// object that can be used, and everything that is wrong. For an object that cannot be used, and for those of a file that cannot
// be read, their last good version stands in, once a Source has seen one.
// Source.Run owns one goroutine (the kernel's watcher belongs to it and ends with it) and calls the caller's function
// from it, one Result at a time. What objects mean is config's part.
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Limits on a folder: past them it is not a folder of manifests.
const (
	MaxFiles = 5000
	MaxTotal = 64 << 20 // bytes
)

// Result is what a folder says at one moment.
type Result struct {
	Config      *model.Config   // of Objects
	Objects     []config.Object // that can be used, each as it is or in its last good version
	Written     []config.Object // all that could be read, as they are
	Diagnostics []model.Diagnostic
}

// Parse reads manifests from r, as `malha apply -f -` does. name stands for the file in diagnostics; relative
// directories of Workloads are resolved against its folder.
func Parse(name string, r io.Reader) *Result {
	data, err := io.ReadAll(io.LimitReader(r, manifest.MaxBytes+1))
	if err != nil {
		out, _ := finish(nil, []model.Diagnostic{unreadable(name, err)}, Good{})
		return out
	}
	objs, ds := config.Parse(name, data)
	out, _ := finish(objs, ds, Good{})
	return out
}

// Read reads a folder or a file once; "-" is standard input.
func Read(path string) *Result { return ReadAll(path) }

// finish makes a Result of objects. ds is what was wrong with reading them.
func finish(objs []config.Object, ds []model.Diagnostic, past Good) (out *Result, attached []content) {
	c, found, attached, _ := fit(objs, past, ds, nil)
	return &Result{Config: c.Config, Objects: c.Objects, Written: objs, Diagnostics: found}, attached
}

func unreadable(name string, err error) model.Diagnostic {
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "check the path"
	case errors.Is(err, fs.ErrPermission):
		hint = "check its permissions"
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err // the path is the diagnostic's place already
	}
	return model.Diagnostic{
		Code: manifest.CodeUnreadable, Severity: model.Error, Origin: ident.Origin{File: name},
		Message: fmt.Sprintf("cannot read it: %v", err), Hint: hint,
	}
}

// content is one manifest file.
type content struct {
	name  string
	found bool // in a folder: nobody named it
	size  int64
	when  int64 // modification time, ns
	data  []byte
	err   error // of an attached file
}

// snapshot is every manifest file of a folder, by name, and the folders they were looked for in.
type snapshot struct {
	files    []content
	attached []content // that objects name, by name
	dirs     []string
	bad      bool     // something could not be read: look again soon
	unread   []string // files and folders that could not; "": perhaps more than is named
}

func (s *snapshot) result(ds []model.Diagnostic, past Good) *Result {
	var objs []config.Object
	unread := slices.Clone(s.unread)
	before := map[string]bool{} // files in which there were objects: those are manifests, whatever they look like now
	for i := range past.Objects {
		before[past.Objects[i].Origin.File] = true
	}
	passed := 0
	for _, f := range s.files {
		found, more, foreign := f.parse(before[f.name])
		if foreign {
			passed++
		}
		objs, ds = append(objs, found...), append(ds, more...)
		if model.HasErrors(more) {
			unread = append(unread, f.name)
		}
	}
	if len(objs) == 0 && len(s.files) > 0 && !model.HasErrors(ds) {
		switch {
		case passed > 0:
			ds = append(ds, nothing(s.dirs[0], noManifest))
		case len(s.files) > 1 && len(s.dirs) > 0:
			ds = append(ds, nothing(s.dirs[0], "no object in this file"))
		default:
			ds = append(ds, nothing(s.files[0].name, "no object in this file"))
		}
	}
	kept, more := keep(past.Objects, objs, unread)
	out, attached := finish(append(objs, kept...), append(ds, more...), past)
	s.attached = attached
	s.watchAttached()
	return out
}

// parse reads the objects of a file. known says that it is a manifest, even when it does not look like one.
func (f *content) parse(known bool) (objs []config.Object, ds []model.Diagnostic, foreign bool) {
	if f.found && !known {
		return config.ParseFound(f.name, f.data)
	}
	objs, ds = config.Parse(f.name, f.data)
	return objs, ds, false
}

// keep returns those of before that were read from files that cannot be read now, and are nowhere else, and says so.
func keep(before, objs []config.Object, unread []string) (kept []config.Object, ds []model.Diagnostic) {
	if len(unread) == 0 {
		return nil, nil
	}
	have := make(map[config.Key]bool, len(objs))
	for i := range objs {
		have[config.KeyOf(&objs[i])] = true
	}
	count := map[string]int{}
	for i := range before {
		o := &before[i]
		file := o.Origin.File
		gone := slices.ContainsFunc(unread, func(name string) bool {
			return name == "" || name == file || strings.HasPrefix(file, name+string(filepath.Separator))
		})
		if gone && !have[config.KeyOf(o)] {
			kept = append(kept, *o)
			count[file]++
		}
	}
	for file, n := range count {
		objects := "the objects that were read from it before keep"
		if n == 1 {
			objects = "the object that was read from it before keeps"
		}
		ds = append(ds, model.Diagnostic{
			Code: manifest.CodeGaveWay, Severity: model.Warning, Origin: ident.Origin{File: file}, Hint: "correct the file, or delete it", Message: objects + " serving",
		})
	}
	return kept, ds
}

// same reports whether two snapshots hold the same files with the same bytes, and lack the same.
func (s *snapshot) same(o *snapshot) bool {
	equal := func(a, b content) bool {
		return a.name == b.name && string(a.data) == string(b.data) && (a.err == nil) == (b.err == nil)
	}
	return slices.Equal(s.unread, o.unread) && slices.EqualFunc(s.files, o.files, equal) && slices.EqualFunc(s.attached, o.attached, equal)
}

// IsManifest reports whether a file of this name is read from a folder.
func IsManifest(name string) bool {
	if strings.HasPrefix(name, ".") { // also what editors write beside a file while it is open
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// scan reads every manifest below path. What is no file, as the output of another command, is read when it is named itself and
// once is set: nobody could follow its changes.
func scan(path string, once bool) (*snapshot, []model.Diagnostic) {
	w := walker{read: true, once: once, seen: map[string]bool{}}
	w.start(path)
	if len(w.files) == 0 && !w.bad {
		w.report = append(w.report, nothing(path, noManifest))
	}
	return &w.snapshot, w.report
}

const noManifest = "no manifest in this folder"

func nothing(name, message string) model.Diagnostic {
	hint := "put *.yaml or *.json files into it"
	if IsManifest(filepath.Base(name)) {
		hint = "write an object into it: apiVersion, kind, metadata and spec"
	}
	return model.Diagnostic{Code: manifest.CodeNothing, Severity: model.Warning, Origin: ident.Origin{File: name}, Message: message, Hint: hint}
}

// glance lists every manifest below path without reading it.
func glance(path string) *snapshot {
	w := walker{seen: map[string]bool{}}
	w.start(path)
	return &w.snapshot
}

// looksSame reports whether two snapshots have the same files with the same sizes and times.
func (s *snapshot) looksSame(o *snapshot) bool {
	equal := func(a, b content) bool { return a.name == b.name && a.size == b.size && a.when == b.when }
	return s.bad == o.bad && slices.EqualFunc(s.files, o.files, equal) && slices.EqualFunc(s.attached, o.attached, equal)
}

type walker struct {
	snapshot
	read   bool
	once   bool
	total  int64
	seen   map[string]bool // real paths of folders, so that a link to a parent ends
	report []model.Diagnostic
}

func (w *walker) fail(name string, err error) {
	w.bad, w.unread = true, append(w.unread, name)
	w.report = append(w.report, unreadable(name, err))
}

func (w *walker) start(path string) {
	if path == "-" && w.once {
		w.stdin()
		return
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		w.fail(path, err)
		w.unread = append(w.unread, "")
	case info.IsDir():
		w.dir(path)
	case !info.Mode().IsRegular() && !w.once:
		w.fail(path, fmt.Errorf("it is %s, of which changes cannot be followed", form(info)))
		w.unread = append(w.unread, "")
	default:
		w.dirs = append(w.dirs, filepath.Dir(path)) // an editor replaces the file: only its folder sees that
		w.linked(path)
		w.file(path, info, false)
	}
}

func (w *walker) stdin() {
	data, err := io.ReadAll(io.LimitReader(os.Stdin, manifest.MaxBytes+1))
	if err != nil {
		w.fail("stdin", err)
		return
	}
	w.files = append(w.files, content{name: "stdin", data: data, size: int64(len(data))})
}

// form says what something in a folder is that is neither a file nor a folder.
func form(info fs.FileInfo) string {
	switch info.Mode().Type() {
	case fs.ModeNamedPipe:
		return "a pipe"
	case fs.ModeSocket:
		return "a socket"
	}
	return "a device"
}

func (w *walker) dir(path string) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		w.fail(path, err)
		return
	}
	if w.seen[real] {
		return
	}
	w.seen[real] = true
	w.dirs = append(w.dirs, path)
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		w.fail(path, err)
		return
	}
	for _, e := range entries {
		name := filepath.Join(path, e.Name())
		if strings.HasPrefix(e.Name(), ".") || !e.IsDir() && e.Type()&fs.ModeSymlink == 0 && !IsManifest(e.Name()) {
			continue
		}
		info, err := os.Stat(name) // follows links
		switch {
		case errors.Is(err, fs.ErrNotExist) && !w.dangling(name):
			continue // removed since the folder was listed
		case err != nil:
			if IsManifest(e.Name()) {
				w.fail(name, err)
			}
		case info.IsDir():
			w.dir(name)
		case info.Mode().IsRegular() && IsManifest(e.Name()):
			if e.Type()&fs.ModeSymlink != 0 {
				w.linked(name)
			}
			w.file(name, info, true)
		case IsManifest(e.Name()):
			w.report = append(w.report, model.Diagnostic{
				Code: manifest.CodeUnreadable, Severity: model.Warning, Origin: ident.Origin{File: name},
				Message: fmt.Sprintf("it is %s, not a file: it is not read", form(info)), Hint: "write the manifest to a file, or give this another name",
			})
		}
		if len(w.files) > MaxFiles || w.total > MaxTotal {
			w.unread = append(w.unread, "")
			return
		}
	}
}

// linked has the folder watched in which the file that a link leads to is: it is edited there.
func (w *walker) linked(name string) {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return // reading it says so
	}
	if dir := filepath.Dir(real); !slices.Contains(w.dirs, dir) {
		w.dirs = append(w.dirs, dir)
	}
}

// dangling reports whether name is a link to nothing, rather than a file that is gone.
func (w *walker) dangling(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func (w *walker) file(name string, info fs.FileInfo, found bool) {
	f := content{name: name, found: found, size: info.Size(), when: info.ModTime().UnixNano()}
	w.total += f.size
	switch {
	case len(w.files) == MaxFiles:
		w.fail(name, fmt.Errorf("more than %d manifests in this folder", MaxFiles))
	case w.total > MaxTotal:
		w.fail(name, fmt.Errorf("more than %d MiB of manifests in this folder", MaxTotal>>20))
	case w.read:
		data, err := readFile(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return // removed since the folder was listed
		case err != nil:
			w.fail(name, err)
			return
		}
		f.data = data
	}
	w.files = append(w.files, f)
}

// readFile reads a file, and one byte more than a manifest may have when it is longer: Parse says so. It waits for nobody to open
// the other end of a pipe, which may have taken the file's place a moment ago.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, manifest.MaxBytes+1))
	return data, errors.Join(err, f.Close())
}
