package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

const sleeper = "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, labels: {app: w}}\nspec: {ports: [{name: http, port: 80}], run: {command: [sleep, \"600\"]}}\n---\n"

// folderMesh is a mesh over a folder with one manifest, whose proxies only sleep.
func folderMesh(t *testing.T, manifest string, events func(*Mesh, Event)) (m *Mesh, folder string) {
	t.Helper()
	folder, beside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(folder, "mesh.yaml"), manifest)
	program(t, filepath.Join(beside, "malha-proxy"))
	m, err := New(Options{
		State: filepath.Join(t.TempDir(), "state"), Folder: folder, Timeout: time.Hour, Programs: &Programs{Beside: beside},
		Events: func(e Event) { events(m, e) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, folder
}

// program writes a program that only sleeps.
func program(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(name, []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	// As editors do: a file that is written in place is empty for a moment, which on a busy machine is long enough to count.
	if err := errors.Join(os.WriteFile(name+".new", []byte(text), 0o600), os.Rename(name+".new", name)); err != nil {
		t.Fatal(err)
	}
}

// Commands reach a mesh from the moment that it listens, which is before anything of it runs.
func TestAskedBeforeAnythingRuns(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var first sync.Once
	m, _ := folderMesh(t, sleeper, func(m *Mesh, e Event) {
		if e.Kind == EventStep {
			first.Do(func() {
				defer cancel()
				if st := m.Status(); st.Phase != Starting {
					t.Errorf("the mesh is %s", st.Phase)
				}
				a := &Applied{}
				w := order{verb: "apply", files: []ManifestFile{{Name: "x.yaml", Data: []byte(serviceB)}}}
				if !m.carryOut(ctx, w, w.objects(a), a) {
					t.Errorf("an apply that comes first does nothing: %v %v", a.Refused, a.Diagnostics)
				}
			})
		}
	})
	if err := m.Run(ctx); err != nil {
		t.Error(err)
	}
	if len(m.config.Services) != 1 {
		t.Errorf("%d services were in force, want the one that was applied", len(m.config.Services))
	}
}

// running runs a folderMesh until the test ends, and hands its events on.
func running(t *testing.T, manifest string) (m *Mesh, folder string, events <-chan Event) {
	t.Helper()
	all := make(chan Event, 1000)
	m, folder = folderMesh(t, manifest, func(_ *Mesh, e Event) { all <- e })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for e := range all {
		if e.Kind == EventStep {
			break
		}
	}
	return m, folder, all
}

// has waits until an object is in force, or something comes that must not come before.
func has(t *testing.T, m *Mesh, kind, name string, before func() string) {
	t.Helper()
	for {
		for _, o := range m.Objects(kind, "") {
			if o.Name.Name == name {
				return
			}
		}
		if why := before(); why != "" {
			t.Fatalf("%s before %s %s is in force", why, kind, name)
		}
		time.Sleep(time.Millisecond)
	}
}

// An edit does not wait for proxies that are late with the one before: here they never come.
func TestAnEditDoesNotWaitForTheOneBefore(t *testing.T) {
	t.Parallel()
	m, folder, events := running(t, sleeper)
	given := func() string {
		select {
		case e := <-events:
			if strings.Contains(e.Text, "not every proxy has it yet") {
				return e.Text
			}
		default:
		}
		return ""
	}
	write(t, filepath.Join(folder, "a.yaml"), serviceA)
	has(t, m, "Service", "a", given)
	write(t, filepath.Join(folder, "b.yaml"), serviceB)
	has(t, m, "Service", "b", given)
}

const ruleX = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: {hosts: [x.example.com], http: [{route: [{destination: {host: b}}]}]}\n"

// told waits until an error of the folder is told.
func told(t *testing.T, events <-chan Event, code string) {
	t.Helper()
	for e := range events {
		for _, d := range e.Diagnostics {
			if d.Code == code {
				return
			}
		}
	}
}

// What an edit lacked may come from elsewhere.
func TestAnEditThatLackedWhatIsApplied(t *testing.T) {
	t.Parallel()
	m, folder, events := running(t, sleeper)
	write(t, filepath.Join(folder, "x.yaml"), ruleX)
	told(t, events, "MALHA0801")
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan *Applied, 1)
	go func() {
		over <- m.change(ctx, order{verb: "apply", files: []ManifestFile{{Name: "b.yaml", Data: []byte(serviceB)}}})
	}()
	has(t, m, "VirtualService", "x", func() string {
		select {
		case a := <-over:
			return fmt.Sprintf("the apply ends: %v %v", a.Refused, a.Diagnostics)
		default:
		}
		return ""
	})
	cancel()
	if a := <-over; !a.OK() || m.wrong() {
		t.Errorf("refused %v, said %v", a.Refused, a.Diagnostics)
	}
}

// Who is told to build a program, and does, has nothing else to do.
func TestAProgramThatIsBuiltAfterItWasNamed(t *testing.T) {
	t.Parallel()
	m, folder, events := running(t, sleeper)
	write(t, filepath.Join(folder, "late.yaml"), strings.NewReplacer("name: w,", "name: late,", "[sleep,", "[./late,").Replace(sleeper))
	told(t, events, codeCommand)
	program(t, filepath.Join(folder, "late"))
	tries := 0
	has(t, m, "Workload", "late", func() string {
		if tries++; tries > 20_000 {
			return "long after it was built"
		}
		return ""
	})
	if m.wrong() {
		t.Error("it is still told")
	}
}

// A program may be away while its workload starts anew for another reason.
func TestAProgramThatIsAwayForAMoment(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "w")
	program(t, bin)
	m, folder, events := running(t, strings.Replace(sleeper, "[sleep,", "["+bin+",", 1))
	if !runs(m) {
		t.Fatal("it does not start")
	}
	if err := os.Remove(bin); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "proxy.yaml"), "apiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig\nmetadata: {name: p}\nspec: {concurrency: 2}\n")
	for e := range events {
		if strings.Contains(e.Text, "cannot start it") {
			break
		}
	}
	program(t, bin)
	if !runs(m) {
		t.Errorf("long after it is there again it does not run: %+v", m.Status().Workloads[0])
	}
}

// It is looked for again also when that came at a moment in which its workload was being changed.
func TestAProgramThatIsAwayDuringAnEdit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, cancel := context.WithCancel(t.Context())
		m := &Mesh{
			calls: make(chan func()), ended: make(chan struct{}), units: map[ident.Name]*unit{}, inner: inner,
			o: Options{Programs: &Programs{}, Events: func(Event) {}},
		}
		u := &unit{name: ident.Name{Namespace: "default", Name: "w"}, workload: &model.Workload{Run: &model.Run{Command: []string{"./none"}, Dir: t.TempDir()}}}
		m.units[u.name] = u
		loop, stop := context.WithCancel(t.Context())
		go m.loop(loop)
		defer func() { cancel(); stop(); <-m.ended; m.wg.Wait() }()
		m.do(func() {
			m.startProgram(u)
			u.stopping = true
		})
		time.Sleep(2 * lookAgain)
		m.do(func() {
			u.stopping = false
			m.startProgram(u)
			u.reason = ""
		})
		time.Sleep(2 * lookAgain)
		m.do(func() {
			if u.reason == "" {
				t.Error("nobody looks for it any more")
			}
		})
	})
}

// proxied says that the proxies, which only sleep, have what they want.
func proxied(m *Mesh) {
	m.do(func() {
		for _, u := range m.units {
			if u.held {
				m.proxyServes(u)
			}
		}
	})
}

// A program that asks another one as its first act would be refused by a proxy that is not there yet.
func TestAProgramStartsAfterItsProxy(t *testing.T) {
	t.Parallel()
	m, _, _ := running(t, sleeper)
	for limit := 0; ; limit++ {
		if limit > 20_000 {
			t.Fatal("the proxy does not start")
		}
		if st := m.Status(); len(st.Proxies) > 0 && st.Proxies[0].PID != 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if s := m.Status().Workloads[0]; s.PID != 0 || s.Health != HealthStarting || !strings.Contains(s.Reason, "proxy") {
		t.Errorf("before its proxy has a configuration: %+v", s)
	}
	ended := func(why string) {
		m.do(func() {
			for _, u := range m.units {
				u.proxy.why = why
			}
		})
	}
	ended("exit status 1")
	st := m.Status()
	if w, p := st.Workloads[0].Reason, st.Proxies[0].Reason; !strings.Contains(w, "exit status 1") || !strings.Contains(p, "exit status 1") {
		t.Errorf("of a proxy that cannot start: %q and %q", w, p)
	}
	ended("")
	if !runs(m) {
		t.Errorf("it does not start after its proxy: %+v", m.Status().Workloads[0])
	}
}

// A program that listens elsewhere than it was told keeps the mesh from being ready; who waits is told so before the time is up.
func TestAStartThatTakesLongSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		m := &Mesh{
			calls: make(chan func()), ended: make(chan struct{}), units: map[ident.Name]*unit{},
			o: Options{Events: func(e Event) { said = append(said, e.Text) }},
		}
		add := func(name, reason string) *unit {
			u := &unit{name: ident.Name{Namespace: "default", Name: name}, workload: &model.Workload{}, reason: reason, serving: true}
			m.units[u.name] = u
			return u
		}
		a, b := add("a", "it does not listen"), add("b", "it does not answer")
		loop, stop := context.WithCancel(t.Context())
		go m.loop(loop)
		defer func() { stop(); <-m.ended }()
		go func() {
			time.Sleep(3*startQuiet + time.Second)
			m.do(func() { b.ready = true })
			time.Sleep(startQuiet)
			m.do(func() { a.ready = true })
		}()
		if !m.awaitUnits(t.Context()) {
			t.Error("it is not ready")
		}
		want := []string{
			"still waiting for default/a (it does not listen), default/b (it does not answer)",
			"still waiting for default/a (it does not listen)",
		}
		if diff := cmp.Diff(want, said); diff != "" {
			t.Error(diff)
		}
	})
}

// runs waits until the program of the only workload runs; false when it does not.
func runs(m *Mesh) bool {
	for range 20_000 {
		proxied(m)
		if st := m.Status(); len(st.Workloads) > 0 && st.Workloads[0].PID != 0 {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// What a workload wrote is kept as long as the workload can be asked for.
func TestAWorkloadThatGoesTakesItsOutputWithIt(t *testing.T) {
	t.Parallel()
	m, folder, _ := running(t, sleeper)
	late := filepath.Join(folder, "late.yaml")
	write(t, late, strings.NewReplacer("name: w,", "name: late,", "[sleep, \"600\"]", "[sh, -c, \"echo here; exec sleep 600\"]").Replace(sleeper))
	written := func() bool { return len(m.out.tail("default/late", 1)) > 0 }
	for limit := 0; !written(); limit++ {
		if limit > 20_000 {
			t.Fatal("it writes nothing")
		}
		proxied(m)
		time.Sleep(time.Millisecond)
	}
	if err := os.Remove(late); err != nil {
		t.Fatal(err)
	}
	for limit := 0; written(); limit++ {
		if limit > 20_000 {
			t.Fatal("long after it is gone its output is kept")
		}
		time.Sleep(time.Millisecond)
	}
}

// That a program of somebody else's does not answer is told, unless we are taking it out of service ourselves.
func TestOnlyWhatFailsByItselfIsAProblem(t *testing.T) {
	for _, stopping := range []bool{false, true} {
		told := 0
		m := &Mesh{phase: Ready, o: Options{Events: func(Event) { told++ }}}
		m.setReady(&unit{ready: true, stopping: stopping}, false, "restarting")
		if got := told > 0; got == stopping {
			t.Errorf("on its way out %v, told %v", stopping, got)
		}
	}
}

// Nor are the states that it passes through then, and a reason that there is none of is not told.
func TestNoProblemOfWhatIsOnItsWayOut(t *testing.T) {
	t.Parallel()
	m, _, _ := running(t, sleeper)
	for _, stopping := range []bool{false, true} {
		m.do(func() {
			for _, u := range m.units {
				u.stopping = stopping
			}
		})
		problems := strings.Join(m.Status().Problems, "\n")
		if (problems == "") != stopping || strings.Contains(problems, "()") {
			t.Errorf("on its way out %v: %q", stopping, problems)
		}
	}
	m.do(func() {
		for _, u := range m.units {
			u.stopping = false
		}
	})
}
