package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestProcess runs the program itself: exit codes, and an end by signal.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	program := build(t)
	plan := filepath.Join(dir, "plan.json")
	if err := os.WriteFile(plan, []byte(`{"node":{"name":{"namespace":"default","name":"a"},"role":"sidecar","identity":{},"workload":{}},
		"listeners":[{"name":"x","bind":"127.0.0.1:0","direction":"outbound","protocol":"http"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--version"}, 0, "malha-proxy v0.0.0-test"},
		{[]string{"--help"}, 0, "--drain-timeout"},
		{nil, 2, "nothing to run from"},
		{[]string{"--nonsense"}, 2, "see malha-proxy --help"},
		{[]string{"--plan", filepath.Join(dir, "none.json")}, 1, "no such file"},
		{[]string{"--plan", "/dev/null"}, 1, "it is empty"},
		{[]string{"--plan", plan, "--node", "a"}, 2, "--node goes with --control"},
		{[]string{"--plan", plan, "--concurrency", "9999999999"}, 2, "want 0 to 1024"},
		{[]string{"--plan", plan, "--drain-timeout", "5"}, 2, "such as 500ms"},
		{[]string{"--plan", plan, "--admin", "127.0.0.1:99999"}, 2, "want HOST:PORT"},
		{[]string{"--control", "127.0.0.1:1", "--node", "a", "--roots", plan, "--token", dir}, 1, "not a file"},
	} {
		out, err := exec.Command(program, tc.args...).CombinedOutput()
		code := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != tc.code || !strings.Contains(string(out), tc.want) {
			t.Errorf("%v: exit code %d, want %d; output %q", tc.args, code, tc.code, out)
		}
	}

	cmd := exec.Command(program, "--plan", plan, "--admin", "")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "plan is in force") {
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := false
	for lines.Scan() {
		ended = ended || strings.Contains(lines.Text(), "proxy has ended")
	}
	if err := cmd.Wait(); err != nil || !ended {
		t.Errorf("after SIGTERM: %v, ended in order: %v", err, ended)
	}
}
