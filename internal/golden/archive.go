package golden

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Archive is a set of named text files in one file, in the txtar format (golang.org/x/tools/txtar): a comment, then
// for each file a line "-- NAME --" and its contents. There is no way to escape a marker line inside a file.
type Archive struct {
	Path    string // of the file that it was read from; "" when it was not
	Comment []byte
	Files   []File
}

// File is one member of an Archive.
type File struct {
	Name string
	Data []byte
}

// Get returns the contents of the file called name, and whether the archive holds it.
func (a *Archive) Get(name string) ([]byte, bool) {
	for _, f := range a.Files {
		if f.Name == name {
			return f.Data, true
		}
	}
	return nil, false
}

// Under returns the files whose name starts with prefix, in the archive's order.
func (a *Archive) Under(prefix string) []File {
	var out []File
	for _, f := range a.Files {
		if strings.HasPrefix(f.Name, prefix) {
			out = append(out, f)
		}
	}
	return out
}

// Inputs returns the files that a case is made of: all but those that it wants.
func (a *Archive) Inputs() []File {
	return slices.DeleteFunc(slices.Clone(a.Files), func(f File) bool { return strings.HasPrefix(f.Name, Want) })
}

// Name is that of the file without folder and extension.
func (a *Archive) Name() string { return strings.TrimSuffix(filepath.Base(a.Path), ".txtar") }

// Set replaces the contents of the file called name, or adds it at the end.
func (a *Archive) Set(name string, data []byte) {
	for i := range a.Files {
		if a.Files[i].Name == name {
			a.Files[i].Data = data
			return
		}
	}
	a.Files = append(a.Files, File{Name: name, Data: data})
}

// Remove takes the file called name out.
func (a *Archive) Remove(name string) {
	a.Files = slices.DeleteFunc(a.Files, func(f File) bool { return f.Name == name })
}

// Parse reads an archive. It refuses a name that stands twice: the second file would never be looked at.
func Parse(data []byte) (*Archive, error) {
	a := &Archive{}
	seen := map[string]bool{}
	into := &a.Comment
	for line := range bytes.Lines(data) {
		name, ok := marker(line)
		if !ok {
			*into = append(*into, line...)
			continue
		}
		if seen[name] {
			return nil, fmt.Errorf("file %q stands twice in the archive", name)
		}
		seen[name] = true
		a.Files = append(a.Files, File{Name: name})
		into = &a.Files[len(a.Files)-1].Data
	}
	return a, nil
}

func marker(line []byte) (string, bool) {
	s, ok := strings.CutPrefix(strings.TrimRight(string(line), "\r\n"), "-- ")
	if !ok {
		return "", false
	}
	s, ok = strings.CutSuffix(s, " --")
	s = strings.TrimSpace(s)
	return s, ok && s != ""
}

// Format writes a as Parse reads it. A file that does not end in a newline gets one.
func (a *Archive) Format() []byte {
	var b bytes.Buffer
	b.Write(closed(a.Comment))
	for _, f := range a.Files {
		fmt.Fprintf(&b, "-- %s --\n", f.Name)
		b.Write(closed(f.Data))
	}
	return b.Bytes()
}

func closed(data []byte) []byte {
	if len(data) == 0 || data[len(data)-1] == '\n' {
		return data
	}
	return append(bytes.Clone(data), '\n')
}
