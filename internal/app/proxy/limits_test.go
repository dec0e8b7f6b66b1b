package proxy

import (
	"flag"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/live"
)

// limited returns what a proxy gets with some flags, as lines.
func limited(t *testing.T, role plan.Role, args ...string) live.Options {
	t.Helper()
	c, err := Parse(append([]string{"--plan", "p"}, args...), env(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var o live.Options
	c.Limits.apply(&o, role)
	return o
}

// Every flag of a limit changes one thing of what the proxy runs with.
func TestEveryLimitReachesTheProxy(t *testing.T) {
	var l Limits
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	l.flags(fs)
	usual := limited(t, plan.Sidecar)
	seen := make(map[string]string)
	fs.VisitAll(func(f *flag.Flag) {
		value := "66000"
		if strings.HasSuffix(f.Value.String(), "s") { // a duration
			value = "77s"
		}
		o := limited(t, plan.Sidecar, "--"+f.Name, value)
		var changed []string
		for line := range strings.Lines(cmp.Diff(*usual.Conn, *o.Conn) + cmp.Diff(usual.Server, o.Server, cmp.FilterPath(func(p cmp.Path) bool {
			switch p.Last().String() {
			case ".MaxConnections", ".HandshakeTimeout", ".DetectTimeout", ".TCPIdle", "":
				return false
			}
			return len(p) > 1
		}, cmp.Ignore()))) {
			if strings.HasPrefix(line, "+") {
				changed = append(changed, strings.Fields(line)[1])
			}
		}
		if len(changed) != 1 {
			t.Errorf("--%s %s changed %q", f.Name, value, changed)
			return
		}
		if other := seen[changed[0]]; other != "" {
			t.Errorf("--%s and --%s both set %s", f.Name, other, changed[0])
		}
		seen[changed[0]] = f.Name
	})
	if len(seen) < 28 {
		t.Errorf("only %d limits have a flag", len(seen))
	}
	if got := limited(t, plan.Gateway).Conn.MinBodyRate; got != gatewayBodyRate {
		t.Errorf("a gateway takes bodies of %d bytes a second", got)
	}
	if got := limited(t, plan.Gateway, "--min-body-rate", "0").Conn.MinBodyRate; got != 0 {
		t.Errorf("a gateway that shall take any takes %d", got)
	}
	if usual.Conn.MinBodyRate != 0 {
		t.Errorf("a sidecar takes bodies of %d bytes a second", usual.Conn.MinBodyRate)
	}
}

// Every flag stands in the manual, with its default.
func TestFlagsAreDocumented(t *testing.T) {
	var out strings.Builder
	_, _ = Parse([]string{"--help"}, env(), &out)
	b, err := os.ReadFile("../../../docs/proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	manual := string(b)
	flags := regexp.MustCompile(`(?m)^  --([a-z-]+)`).FindAllStringSubmatch(out.String(), -1)
	if len(flags) < 40 {
		t.Errorf("only %d flags in the help", len(flags))
	}
	var l Limits
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	l.flags(fs)
	for _, f := range flags {
		row := regexp.MustCompile("(?m)^\\| `--" + f[1] + "` \\|.*$").FindString(manual)
		if row == "" {
			t.Errorf("docs/proxy.md has no row for --%s", f[1])
			continue
		}
		if lf := fs.Lookup(f[1]); lf != nil && !strings.Contains(row, "| "+short(lf.DefValue)+" |") {
			t.Errorf("docs/proxy.md: the default of --%s is not %s: %s", f[1], short(lf.DefValue), row)
		}
	}
}

// short writes a duration without the zeros behind.
func short(s string) string {
	s = strings.TrimSuffix(s, "m0s") + map[bool]string{true: "m"}[strings.HasSuffix(s, "m0s")]
	if h, ok := strings.CutSuffix(s, "h0m"); ok {
		return h + "h"
	}
	return s
}
