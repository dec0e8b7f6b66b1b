package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/model"
)

func TestEditsAreDescribedByTheirFiles(t *testing.T) {
	a, b := parse(t, "mesh/a.yaml", serviceA), parse(t, "mesh/b.yaml", serviceB)
	m := &Mesh{objects: append(a, b...)}
	for _, c := range []struct {
		what  string
		after []config.Object
		want  string
	}{
		{"nothing", m.objects, ""},
		{"comments and layout", append(parse(t, "mesh/a.yaml", serviceA2), b...), ""},
		{"a port", append(parse(t, "mesh/a.yaml", serviceA81), b...), "a.yaml changed"},
		{"a file gone", a, "b.yaml deleted"},
		{"a file renamed", append(parse(t, "mesh/c.yaml", serviceA), b...), "c.yaml changed"},
		{"an object gone from a file", parse(t, "mesh/b.yaml", serviceA), "b.yaml changed"},
		{"both", nil, "a.yaml deleted, b.yaml deleted"},
	} {
		if got := m.describeEdit(c.after); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestAGatewayThatSelectsNothingIsTold(t *testing.T) {
	gateway := "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  selector: {istio: GATEWAY}\n" +
		"  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]\n"
	for label, want := range map[string]string{"ingressgateway": "", "other": "MALHA0809"} {
		m := &Mesh{ports: somePorts(t)}
		c, ds, _ := m.fit(t.Context(), basis{}, parse(t, "g.yaml", strings.Replace(gateway, "GATEWAY", label, 1)), nil, nil)
		var got []string
		for _, d := range ds {
			got = append(got, d.Code)
		}
		if c == nil || strings.Join(got, " ") != want {
			t.Errorf("istio: %s: diagnostics %v, want %q", label, got, want)
		}
	}
}

// TestFit edits a folder in which a program and a host are not there.
func TestFit(t *testing.T) {
	t.Chdir(t.TempDir())
	workload := func(name, command string) string {
		return "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: " + name + "}\nspec: {ports: [{name: http, port: 80}], run: {command: [" + command + "]}}\n---\n"
	}
	rule := func(name, host string) string {
		return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + "}\nspec: {hosts: [" + name + ".example.com], http: [{route: [{destination: {host: " + host + "}}]}]}\n---\n"
	}
	m := &Mesh{ports: somePorts(t), o: Options{Programs: &Programs{}}}
	var before []config.Object
	for _, step := range []struct{ what, folder, objects, codes string }{
		{"all is well", workload("a", "sh") + serviceA + "---\n" + rule("x", "a"), "Workload a, Service a, VirtualService x", ""},
		{"a program and a host that are not there", workload("a", "no-such-program") + workload("b", "no-such-program") + serviceA + "---\n" + rule("x", "b") + rule("y", "b"),
			"Workload a, Service a, VirtualService x", "MALHA0112 MALHA0901 MALHA0112 MALHA0901 MALHA0112 MALHA0801 MALHA0112 MALHA0801"},
		{"a host that goes", workload("a", "sh") + rule("x", "a"), "Workload a, VirtualService x", "MALHA0801"},
		{"and comes", workload("a", "sh") + serviceA + "---\n" + rule("x", "a"), "Workload a, Service a, VirtualService x", ""},
	} {
		c, ds, _ := m.fit(t.Context(), basis{}, parse(t, "mesh.yaml", step.folder), before, nil)
		if c == nil {
			t.Fatalf("%s: nothing can be in force: %v", step.what, ds)
		}
		var objects, codes []string
		for _, o := range c.Objects {
			objects = append(objects, o.Kind+" "+o.Name.Name)
		}
		for _, d := range ds {
			if d.Severity == model.Error || d.Code == "MALHA0112" {
				codes = append(codes, d.Code)
			}
		}
		if got := strings.Join(objects, ", "); got != step.objects {
			t.Errorf("%s: %s are in force, want %s", step.what, got, step.objects)
		}
		if got := strings.Join(codes, " "); got != step.codes {
			t.Errorf("%s: %s, want %s\n%v", step.what, got, step.codes, ds)
		}
		if r := c.Config.Workloads[0].Run; r.Command[0] != "sh" {
			t.Errorf("%s: a runs %v", step.what, r.Command)
		}
		before = c.Objects
	}
}

func TestWhatIsShadowedStays(t *testing.T) {
	folder, applied := parse(t, "a.yaml", serviceA+"---\n"+serviceB), parse(t, "x.yaml", serviceA81)
	sound := append(parse(t, "a.yaml", serviceB), applied...) // as merge and fit have it
	out := without(sound, folder, applied)
	if len(out) != 2 || !sameContent(byKey(out)[config.KeyOf(&applied[0])], &folder[0]) {
		t.Errorf("%v", out)
	}
}

func TestAWaitingWorkloadNamesThePortThatIsMissing(t *testing.T) {
	w := &model.Workload{Run: &model.Run{}, Ports: []model.WorkloadPort{{Name: "http", Port: 80}, {Name: "http-admin", Port: 81}, {Port: 82}}}
	app := map[int]string{80: "127.0.0.1:1", 81: "127.0.0.1:2", 82: "127.0.0.1:3"}
	for addr, want := range map[string]string{"127.0.0.1:2": "$(PORT_HTTP_ADMIN)", "127.0.0.1:3": "$(PORT_82)"} {
		if got := waiting(w, app, addr); !strings.Contains(got, addr+" yet") || !strings.HasSuffix(got, want) {
			t.Errorf("%q, want it to name %s and %s", got, addr, want)
		}
	}
}

// Where nobody waits for orphans they stay as zombies, which are not ended a second time.
func TestZombiesAreNotReaped(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("no /proc")
	}
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	o := &orphans{path: filepath.Join(t.TempDir(), "children"), groups: map[int]string{}}
	o.add(pid)
	if !groupLives(pid) {
		t.Error("a program that runs is taken for a zombie")
	}
	_ = cmd.Process.Kill()
	for range 1_000_000 { // it is one from its end until Wait below
		if st, ok := readStat("/proc/" + strconv.Itoa(pid) + "/stat"); ok && st.state == "Z" {
			break
		}
	}
	if n := o.reap(); n != 0 {
		t.Errorf("reaped %d zombies", n)
	}
	_ = cmd.Wait()
}
