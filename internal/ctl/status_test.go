package ctl

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
)

func TestStatusTellsOfProxyAndProgram(t *testing.T) {
	now := time.Now()
	name := func(n string) ident.Name { return ident.Name{Namespace: "default", Name: n} }
	st := &local.Status{}
	add := func(n string, proxy, program local.Health) {
		st.Proxies = append(st.Proxies, local.ProxyStatus{Name: name(n), Role: "sidecar", Sync: local.Synced, Health: proxy, Restarts: 1,
			Applied: now.Add(-150 * time.Second), CertExpires: now.Add(25*time.Hour + 30*time.Minute)})
		st.Workloads = append(st.Workloads, local.WorkloadStatus{Name: name(n), Health: program, Restarts: 4})
	}
	add("a", local.HealthReady, local.HealthReady)
	add("b", local.HealthReady, local.HealthCrashing)
	add("c", local.HealthStarting, local.HealthReady)
	add("d", local.HealthStarting, local.HealthCrashing)
	add("e", local.HealthStopping, local.HealthStopping)
	st.Proxies = append(st.Proxies, local.ProxyStatus{Name: ident.Name{Namespace: "istio-system", Name: "door"}, Role: "gateway",
		Sync: local.Stale, Reason: "not connected", Health: local.HealthStarting})
	var out bytes.Buffer
	(&session{ui: newUI(&out, io.Discard)}).proxies(st)
	if diff := cmp.Diff(`NAME               ROLE     SYNC                   CONFIG  CERT      RESTARTS  HEALTH
default/a          sidecar  SYNCED                 2m ago  25h left  5         ready
default/b          sidecar  SYNCED                 2m ago  25h left  5         program crashing
default/c          sidecar  SYNCED                 2m ago  25h left  5         proxy starting
default/d          sidecar  SYNCED                 2m ago  25h left  5         proxy starting, program crashing
default/e          sidecar  SYNCED                 2m ago  25h left  5         stopping
istio-system/door  gateway  STALE (not connected)  -       -         0         starting
`, out.String()); diff != "" {
		t.Errorf("malha status (-want +got):\n%s", diff)
	}
	if c := condition(&st.Proxies[3], &st.Workloads[3]); c.tone != red {
		t.Errorf("a program that keeps crashing beside a proxy that starts is %q", c.tone)
	}
}

func TestAgesAreSaidAsPeopleDo(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]string{0: "just now", -999 * time.Millisecond: "just now", -8 * time.Second: "8s ago", -3 * time.Hour: "3h ago", time.Second: "just now"} {
		if got := ago(now, now.Add(d)); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "expired", time.Minute: "60s left"} {
		if got := left(now, now.Add(d)); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestNarrowTerminalsLeaveOutWhatIsOptional(t *testing.T) {
	for columns, want := range map[int]string{
		0:  "NAME  HEALTH  IDENTITY\na     ready   somebody\n", // no terminal
		22: "NAME  HEALTH  IDENTITY\na     ready   somebody\n",
		21: "NAME  HEALTH\na     ready\n",
		5:  "NAME  HEALTH\na     ready\n",
	} {
		tb := &table{optional: 1}
		tb.header("NAME", "HEALTH", "IDENTITY")
		tb.row(plain("a"), plain("ready"), plain("somebody"))
		tb.fit(columns)
		var got bytes.Buffer
		tb.write(&got, false)
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("in %d columns (-want +got):\n%s", columns, diff)
		}
	}
}

// failing is an output that cannot be written to.
type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestOnlyABrokenPipeIsNobodyReading(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{{&errno{syscall.EPIPE}, 2}, {errors.New("disk full"), 0}, {nil, 0}} {
		told := 0
		u := newUI(failing{c.err}, failing{c.err})
		u.broken(func() { told++ })
		u.say("hello")
		_, _ = u.out.Write([]byte("data"))
		if told != c.want {
			t.Errorf("%v: told %d times, want %d", c.err, told, c.want)
		}
	}
}

func TestDataThatCouldNotBeWrittenIsAnError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{{&errno{syscall.ENOSPC}, 1}, {&errno{syscall.EPIPE}, 0}, {nil, 0}} {
		var said strings.Builder
		code := Main(t.Context(), "v1", []string{"--help"}, strings.NewReader(""), failing{c.err}, &said)
		if code != c.want || (code != 0) != strings.Contains(said.String(), "cannot write the output: write: no space left on device") {
			t.Errorf("%v: exit code %d, want %d; said %q", c.err, code, c.want, said.String())
		}
	}
}

// errno is an error of the kernel as packages wrap it.
type errno struct{ err error }

func (e *errno) Error() string { return "write: " + e.err.Error() }
func (e *errno) Unwrap() error { return e.err }
