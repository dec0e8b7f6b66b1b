package proxy

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProgramMaps(t *testing.T) {
	const maps = `00400000-007ca000 r-xp 00000000 fe:00 1234                               /opt/my mesh/malha-proxy
007ca000-00ba9000 r--p 003ca000 fe:00 1234                               /opt/my mesh/malha-proxy
00ba9000-00bec000 rw-p 007a9000 fe:00 1234                               /opt/my mesh/malha-proxy
00bec000-02c2e000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--s 00000000 fe:00 1234                       /opt/my mesh/malha-proxy
7f1000000000-7f1000001000 r-xp 00000000 fe:00 77                         /opt/my mesh/malha-proxy-2
7f2000000000-7f2000001000 r-xp 00000000 00:00 0                          [vdso]
nonsense
`
	got := programMaps(maps, "/opt/my mesh/malha-proxy")
	want := []mapping{{0x400000, 0x7ca000}, {0x7ca000, 0xba9000}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(mapping{})); d != "" {
		t.Error(d)
	}
}

// After it much less of the program file is resident, and the process runs on.
func TestUnmapProgram(t *testing.T) {
	resident := func() int {
		b, err := os.ReadFile("/proc/self/status")
		m := regexp.MustCompile(`RssFile:\s+(\d+) kB`).FindSubmatch(b)
		if err != nil || m == nil {
			t.Skip("the kernel does not say what is resident of files")
		}
		n, _ := strconv.Atoi(string(m[1]))
		return n
	}
	before := resident()
	unmapProgram()
	if after := resident(); after > before*3/4 {
		t.Errorf("%d kB of files were resident, %d kB are", before, after)
	}
}
