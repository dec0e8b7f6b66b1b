package telemetry

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lookEvery is how often a LogFile looks whether its name stands for another file by now.
const lookEvery = time.Second

// LogFile is a file that lines are appended to, and that may be renamed or removed by whoever rotates logs: within lookEvery
// its name is opened again. Who truncates it in place (logrotate's copytruncate) is met too, as every write goes to the end.
// It is used by one goroutine.
type LogFile struct {
	name   string
	f      *os.File
	looked time.Time
}

// OpenLogFile opens or creates a file.
func OpenLogFile(name string) (*LogFile, error) {
	f, err := openLog(name)
	if named, serr := os.Stat(name); errors.Is(err, syscall.ENXIO) && serr == nil && named.Mode()&os.ModeSocket != 0 { // as /dev/stdout may be, below systemd
		return nil, fmt.Errorf("the access log can't be opened: %s is a socket; name a file, or stdout", name)
	}
	if errors.Is(err, syscall.ENXIO) {
		return nil, fmt.Errorf("the access log can't be opened: %s is a pipe that nobody reads; start its reader first", name)
	}
	if err != nil {
		return nil, fmt.Errorf("the access log can't be opened: %w", err)
	}
	return &LogFile{name: name, f: f}, nil
}

func openLog(name string) (*os.File, error) {
	// O_NONBLOCK: to open a pipe waits for a reader otherwise, and cannot be interrupted (fifo(7)).
	return os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NONBLOCK, 0o644)
}

// Write appends p.
func (l *LogFile) Write(p []byte) (int, error) {
	if now := time.Now(); now.Sub(l.looked) >= lookEvery {
		l.looked = now
		l.follow()
	}
	return l.f.Write(p)
}

// follow opens the name again when it does not stand for the open file. While that can't be done the open one is written to.
func (l *LogFile) follow() {
	if named, err := os.Stat(l.name); err == nil {
		if opened, err := l.f.Stat(); err == nil && os.SameFile(named, opened) {
			return
		}
	}
	if f, err := openLog(l.name); err == nil {
		_ = l.f.Close()
		l.f = f
	}
}

// Close closes the file.
func (l *LogFile) Close() error { return l.f.Close() }
