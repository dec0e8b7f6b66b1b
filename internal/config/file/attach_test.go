package file

import (
	"os"
	"path/filepath"
	"testing"
)

// What a Result was made of is what the next one is compared with: a certificate that changes a moment after it was read is a change.
func TestAttachKeepsWhatWasRead(t *testing.T) {
	dir := t.TempDir()
	read, other := filepath.Join(dir, "read"), filepath.Join(dir, "other")
	for _, name := range []string{read, other} {
		if err := os.WriteFile(name, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	made := snapshot{attached: []content{{name: read, data: []byte("old")}}}
	made.attach([]string{other}, true)
	var now snapshot
	now.attach([]string{read, other}, true)
	if now.same(&made) {
		t.Error("the change is lost")
	}
	made.attached[1].data = []byte("new")
	if !now.same(&made) {
		t.Errorf("%v is another than %v", now.attached, made.attached)
	}
}
