package proxy

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// unmapProgram takes the pages of the program file out of the process: what starting, reading a plan or a burst needed stays
// mapped otherwise, and the kernel can't tell that nobody uses it any more. The pages stay in the page cache, which is the
// machine's; those that are used come back by themselves, sixteen at a time, for about a microsecond (fault-around).
//
// It is about clean pages only, so that nothing can be lost (madvise(2), MADV_DONTNEED on a private mapping of a file);
// where it does not work, memory stays as it is.
func unmapProgram() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for _, m := range programMaps(string(maps), program) {
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, m.start, m.end-m.start, syscall.MADV_DONTNEED)
	}
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// programMaps returns those of maps, as proc_pid_maps(5) has it, that are of the program file and can't be written to.
func programMaps(maps, program string) []mapping {
	var out []mapping
	for line := range strings.Lines(maps) {
		// address, permissions, offset, device, inode, path: which may have spaces.
		path := strings.IndexByte(line, '/')
		f := strings.Fields(line)
		if path < 0 || strings.TrimSuffix(line[path:], "\n") != program || len(f[1]) != 4 || f[1][1] != '-' || f[1][3] != 'p' {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			continue
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil || end <= start {
			continue
		}
		out = append(out, mapping{uintptr(start), uintptr(end)})
	}
	return out
}
