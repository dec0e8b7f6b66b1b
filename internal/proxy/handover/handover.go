// Package handover lets a new proxy process take the listening sockets of the running one, so that an upgrade loses no
// connection.
//
// In comes the path of a unix socket. Claim returns either a Door, for the process that is the first to come, or a
// Predecessor, when a process is there already. The Door's owner answers (Door.Serve) who asks for its sockets; the newcomer
// asks for those that its plan needs, and takes the Door itself over once it is ready to serve (Predecessor.TakeOver).
// Until that moment nothing has changed for the one that runs: if the newcomer dies, or speaks a version that is unknown,
// it just goes on.
//
// Sockets travel as SCM_RIGHTS (unix(7)): both processes then hold the same kernel object, with one accept queue, so there
// is no moment in which nobody listens. Serve's goroutine is its caller's; nothing else runs here. docs/design/0012
// has the reasons. internal/app/proxy is who uses it.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Version is of the messages. A process answers only its own.
const Version = 1

// Time limits. A newcomer has to obtain its plan and its identity, so it may take a while; others wait for it in line.
const (
	helloTime = 5 * time.Second // of the first message, and of each answer
	readyTime = 2 * time.Minute // from the first message to the last
	lineTime  = readyTime + 30*time.Second
)

// maxMessage bounds a message; they are packets, so each is read whole.
const maxMessage = 4 << 10

// Kinds of messages.
const (
	hello    = "hello"    // newcomer: who I am
	welcome  = "welcome"  // runner: ask
	want     = "want"     // newcomer: the socket with a key
	socket   = "socket"   // runner: here it is, attached
	none     = "none"     // runner: I have none with that key
	takeOver = "takeover" // newcomer: I serve; stop
	yours    = "yours"    // runner: I accept nothing any more; the door is attached
	refused  = "refused"  // runner: why not
)

// packet is one message. Everybody refuses fields and kinds that they do not know: a future version might mean something
// by them that cannot be left out.
type packet struct {
	Kind    string `json:"kind"`
	Version int    `json:"version,omitempty"` // hello, welcome
	PID     int    `json:"pid,omitempty"`     // hello, welcome
	Program string `json:"program,omitempty"` // hello, welcome: its version, for people
	Key     string `json:"key,omitempty"`     // want
	Reason  string `json:"reason,omitempty"`  // refused
}

// Refused is the answer of a running process that does not hand over.
type Refused struct {
	PID    int // 0 unknown
	Reason string
}

func (r *Refused) Error() string {
	return fmt.Sprintf("the running proxy%s does not hand over: %s", pid(r.PID), r.Reason)
}

func pid(n int) string {
	if n == 0 {
		return ""
	}
	return " (pid " + strconv.Itoa(n) + ")"
}

func send(c *net.UnixConn, p packet, fds ...int) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("a message of %d bytes is longer than %d", len(b), maxMessage)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, rights, nil)
	return err
}

// errStrange is a message that this version does not know.
var errStrange = errors.New("a message that this version does not know")

// receive reads one message and what is attached to it. Every file is the caller's.
func receive(c *net.UnixConn) (packet, []*os.File, error) {
	var b [maxMessage]byte
	var oob [64]byte // room for more descriptors than any message has
	n, oobn, flags, _, err := c.ReadMsgUnix(b[:], oob[:])
	if err != nil {
		return packet{}, nil, err
	}
	files, err := attached(oob[:oobn])
	if err != nil || flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		closeAll(files)
		return packet{}, nil, errors.Join(errStrange, err)
	}
	d := json.NewDecoder(strings.NewReader(string(b[:n])))
	d.DisallowUnknownFields()
	var p packet
	if err := d.Decode(&p); err != nil {
		closeAll(files)
		return packet{}, nil, fmt.Errorf("%w: %w", errStrange, err)
	}
	return p, files, nil
}

func attached(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// longest is what fits a unix socket's address (unix(7): 108 bytes with the end).
const longest = 107

// address returns a unix address for a path of any length; done lets go of what it needed.
func address(path string) (name string, done func(), err error) {
	if len(path) <= longest {
		return path, func() {}, nil
	}
	dir, err := syscall.Open(filepath.Dir(path), syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)), func() { _ = syscall.Close(dir) }, nil
}
