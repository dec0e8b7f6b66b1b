//go:build linux && !portable

package conn

import (
	"encoding/binary"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Poll lets others have their turn between the parts of work that comes all at once.
//
// Go's scheduler asks the kernel for news of sockets when no goroutine is left to run, and otherwise every 10 ms. So who wakes
// a hundred goroutines at once, or does a hundred things in a row, has all of it done before the bytes of anybody else are
// noticed. To yield (runtime.Gosched) does not help: the others are no goroutines that could run yet.
//
// Look waits for news of its own, which is there when it begins to wait. That costs three system calls, and time only while
// there is something else to do.
type Poll struct {
	mu    sync.Mutex // held while somebody looks: whoever comes meanwhile looks after him
	file  *os.File   // an eventfd(2); nil before the first Look
	raw   syscall.RawConn
	wait  func(fd uintptr) bool
	told  bool // the kernel has news
	count [8]byte
}

// Look returns when those have run who can run by now, and after them those for whom the kernel has news. A nil Poll only
// yields, and so does one that gets no file descriptor.
func (p *Poll) Look() {
	if p != nil {
		p.look()
	}
	runtime.Gosched() // who had news as well
}

func (p *Poll) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil && !p.openLocked() {
		return
	}
	p.told = false
	_ = p.raw.Read(p.wait)
}

// Close gives the file descriptor back, which another Look would take again.
func (p *Poll) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != nil {
		_ = p.file.Close()
		p.file = nil
	}
}

func (p *Poll) openLocked() bool {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return false
	}
	file := os.NewFile(uintptr(fd), "poll") // being non-blocking it is given to Go's poller
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return false
	}
	p.file, p.raw, p.wait = file, raw, p.await
	return true
}

// await is called when the wait is prepared, so that what happens from here on ends it, and again when it has ended.
func (p *Poll) await(fd uintptr) bool {
	if p.told {
		_, err := unix.Read(int(fd), p.count[:])
		return err != unix.EAGAIN
	}
	p.told = true
	binary.NativeEndian.PutUint64(p.count[:], 1)
	_, err := unix.Write(int(fd), p.count[:])
	return err != nil
}
