package local

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/malha-mesh/malha/internal/proxy/owner"
)

// Machines have more than one user. What is here keeps the mesh its user's: nobody else may have made the place where keys and
// sockets are kept, may be at the other end of the control socket, or may have put a mesh of theirs where ours is looked for.

// MakeState makes a state directory when it is missing, and refuses one that is not safe to use. Nothing may be opened in it before.
func MakeState(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the state directory: %w; choose another with --state DIR", err)
	}
	return checkOwn(dir)
}

// checkOwn refuses a state directory in which another user could read, replace or plant something: it has to be ours, nobody
// else's to write in, and so has every directory above it, but for those of root's and with a sticky bit (as sshd's StrictModes).
func checkOwn(dir string) error {
	own := os.Geteuid()
	refuse := func(path, why, then string) error {
		return fmt.Errorf("cannot use the state directory %s: %s %s, so another user could put its own there; %s", dir, path, why, then)
	}
	const elsewhere = "choose another with --state DIR"
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("cannot use the state directory: %w; %s", err, elsewhere)
	}
	if info.Mode()&os.ModeSymlink != 0 {
		if user := ownerOf(info); user != own && user != 0 {
			return refuse(dir, fmt.Sprintf("is a link of user %d's", user), elsewhere)
		}
		if info, err = os.Stat(dir); err != nil {
			return fmt.Errorf("cannot use the state directory: %w; %s", err, elsewhere)
		}
	}
	switch user := ownerOf(info); {
	case !info.IsDir():
		return fmt.Errorf("cannot use the state directory: %s is not a directory; %s", dir, elsewhere)
	case user != own:
		return refuse(dir, fmt.Sprintf("belongs to user %d", user), elsewhere)
	case info.Mode().Perm()&0o022 != 0:
		return refuse(dir, fmt.Sprintf("can be written by others (mode %04o)", info.Mode().Perm()), "`chmod go-w` it, or "+elsewhere)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("cannot use the state directory: %w; %s", err, elsewhere)
	}
	for _, path := range []string{dir, real} { // a link on the way must not be another's to turn either
		for p := filepath.Dir(path); ; p = filepath.Dir(p) {
			info, err := os.Lstat(p)
			if err != nil {
				return fmt.Errorf("cannot use the state directory: %w; %s", err, elsewhere)
			}
			if user := ownerOf(info); user != own && user != 0 && user != unmapped() {
				return refuse(p, fmt.Sprintf("belongs to user %d", user), elsewhere)
			}
			if info.IsDir() && info.Mode().Perm()&0o002 != 0 && info.Mode()&os.ModeSticky == 0 {
				return refuse(p, fmt.Sprintf("can be written by everybody (mode %04o)", info.Mode().Perm()), elsewhere)
			}
			if p == filepath.Dir(p) {
				break
			}
		}
	}
	return nil
}

// unmapped returns the user that the files of everybody outside of our user namespace seem to have, as those of the machine's root do
// in a container without a root of its own (user_namespaces(7)); -1 where nobody is outside. What is above our directory is that
// root's, as far as can be known.
var unmapped = sync.OnceValue(func() int {
	users, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(users)); err != nil || slices.Equal(f, []string{"0", "0", "4294967295"}) {
		return -1
	}
	text, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	user, cerr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || cerr != nil {
		return -1
	}
	return user
})

// ownerOf returns the user that a file belongs to.
func ownerOf(info os.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// guarded is a control socket at which only our user is heard. The mode of the socket and of its directory say the same; they are
// the kernel's word from a moment after it was made.
type guarded struct{ net.Listener }

// Accept returns the next connection of our user.
func (g guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if _, err := owner.OfSocket(c.(*net.UnixConn)); err == nil {
			return c, nil
		}
		_ = c.Close()
	}
}
