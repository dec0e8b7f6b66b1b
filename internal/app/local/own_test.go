package local

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const otherUser = 61234

// private returns a directory that only our user writes to.
func private(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// must fails the test when preparing it failed.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStateThatOthersCanReach(t *testing.T) {
	root := os.Geteuid() == 0
	for _, tc := range []struct {
		name string
		root bool // needs to be root
		make func(t *testing.T, base string) (dir string)
		want string // part of the error; "" it is fine
	}{
		{"it is made", false, func(_ *testing.T, base string) string { return filepath.Join(base, "a", "b") }, ""},
		{"it may be read", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o755))
			return filepath.Join(base, "s")
		}, ""},
		{"below a directory like /tmp", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "tmp"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "tmp"), 0o777|os.ModeSticky))
			return filepath.Join(base, "tmp", "s")
		}, ""},
		{"by a link of ours", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Symlink("s", filepath.Join(base, "link")))
			return filepath.Join(base, "link")
		}, ""},
		{"it may be written by everybody", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "s"), 0o777|os.ModeSticky))
			return filepath.Join(base, "s")
		}, "can be written by others"},
		{"it may be written by a group", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "s"), 0o770))
			return filepath.Join(base, "s")
		}, "can be written by others"},
		{"what it is in may be written by everybody", false, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "open"), 0o700))
			must(t, os.Chmod(filepath.Join(base, "open"), 0o777))
			return filepath.Join(base, "open", "s")
		}, "can be written by everybody"},
		{"a file", false, func(t *testing.T, base string) string {
			must(t, os.WriteFile(filepath.Join(base, "s"), nil, 0o600))
			return filepath.Join(base, "s")
		}, "not a directory"},
		{"it is another's", true, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Chown(filepath.Join(base, "s"), otherUser, otherUser))
			return filepath.Join(base, "s")
		}, "belongs to user 61234"},
		{"what it is in is another's", true, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "theirs"), 0o755))
			must(t, os.Mkdir(filepath.Join(base, "theirs", "s"), 0o700))
			must(t, os.Chown(filepath.Join(base, "theirs"), otherUser, otherUser))
			return filepath.Join(base, "theirs", "s")
		}, "belongs to user 61234"},
		{"by a link of another's", true, func(t *testing.T, base string) string {
			must(t, os.Mkdir(filepath.Join(base, "s"), 0o700))
			must(t, os.Symlink("s", filepath.Join(base, "link")))
			must(t, os.Lchown(filepath.Join(base, "link"), otherUser, otherUser))
			return filepath.Join(base, "link")
		}, "link of user 61234"},
		{"over a link of another's", true, func(t *testing.T, base string) string {
			must(t, os.MkdirAll(filepath.Join(base, "a", "s"), 0o700))
			must(t, os.Symlink("a", filepath.Join(base, "link")))
			must(t, os.Lchown(filepath.Join(base, "link"), otherUser, otherUser))
			return filepath.Join(base, "link", "s")
		}, "belongs to user 61234"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.root && !root {
				t.Skip("only root can give a file away")
			}
			dir := tc.make(t, private(t))
			s, err := openState(dir, "f")
			if err == nil {
				s.close()
			}
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "--state")):
				t.Errorf("%v, want %q and what to do", err, tc.want)
			}
			if tc.want == "" || strings.Contains(tc.want, "not a directory") {
				return
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("something was written before it was looked at: %v, %v", left, err)
			}
		})
	}
}

func TestRuntimeDirOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := t.TempDir()
	t.Setenv("MALHA_STATE", "")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("HOME", "/home/me")
	if got, err := DefaultState(); err != nil || got != filepath.Join(dir, "malha") {
		t.Errorf("ours: %s, %v", got, err)
	}
	must(t, os.Chown(dir, otherUser, otherUser))
	if got, err := DefaultState(); err != nil || got != "/home/me/.local/state/malha" {
		t.Errorf("another's: %s, %v", got, err)
	}
}

func TestMetricsAreForThisMachine(t *testing.T) {
	h := named(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for host, want := range map[string]int{
		"127.0.0.1:1": 200, "127.0.0.1": 200, "localhost:9": 200, "[::1]:8": 200, "[::1]": 200, "": 200,
		"evil.example": 403, "evil.example:80": 403, "localhost.evil.example:80": 403, "127.0.0.1.evil.example": 403,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Host = host
		if h.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%q: %d, want %d", host, w.Code, want)
		}
	}
}
