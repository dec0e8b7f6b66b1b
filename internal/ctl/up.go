package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/app/local"
)

// eventsFD is the descriptor on which a detached mesh tells the command that started it how it is getting on.
const eventsFD = "MALHA_EVENTS_FD"

func (s *session) up() *cobra.Command {
	o := local.Options{Timeout: time.Minute}
	door, detach := gatewayPort{port: -1}, false
	var folders []string
	cmd := &cobra.Command{
		Use:   "up [-f DIR|FILE]",
		Short: "Start a mesh on this machine",
		Long: `Start a mesh on this machine, as an ordinary user: a control plane with its certificate authority, the gateways, and
for each Workload of the folder its program and a proxy beside it. Without -f it is the bundled Bookinfo, of which a fresh
copy is written to the state directory, to be looked at and edited.

The folder is watched: an edit is in force at once. What has an error is explained, and keeps serving as it was. Ctrl-C stops the mesh after the requests in flight; a second one stops it at once.

A folder holds Services and rules as for Kubernetes, and for each program a Workload:

  apiVersion: malha.dev/v1alpha1
  kind: Workload
  metadata: {name: web-v1, labels: {app: web, version: v1}}
  spec:
    ports: [{name: http, port: 8000}]
    run:
      command: [./web, --listen, "127.0.0.1:$(PORT)"]

Programs find their port in $(PORT) or $(PORT_<NAME>), and reach other services by name over HTTP_PROXY, or at
<SERVICE>_SERVICE_HOST:<SERVICE>_SERVICE_PORT. HTTPS_PROXY is not set.`,
		Example: `  malha up
  malha up -d -f ./mesh
  malha up -f ./mesh --gateway-port 9000`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := s.stateDir()
			if err != nil {
				return err
			}
			o.State, o.Version = dir, s.version
			switch len(folders) {
			case 0:
			case 1:
				o.Folder = folders[0]
			default: // other commands take several
				return errors.New("-f stands twice, and a mesh has one folder; put all of it below that, a symbolic link will do")
			}
			if o.Folder == "" && cmd.Flags().Changed("filename") { // most often a variable of a script that is not set
				return errors.New("-f names nothing; name a folder or file of manifests, or leave -f out for the bundled Bookinfo")
			}
			if o.Folder != "" {
				if o.Folder, err = absolute(o.Folder); err != nil {
					return err
				}
				if _, err := os.Stat(o.Folder); err != nil {
					return fmt.Errorf("cannot read %s: %w; -f names a folder or file of manifests", shortPath(o.Folder), errors.Unwrap(err))
				}
			}
			if v := os.Getenv("MALHA_GATEWAY_PORT"); v != "" && !cmd.Flags().Changed("gateway-port") {
				if err := door.Set(v); err != nil {
					return fmt.Errorf("MALHA_GATEWAY_PORT=%s %w", v, err)
				}
			}
			o.GatewayPort = door.port
			switch {
			case cmd.Flags().Changed("cert-ttl") && o.CertTTL < 2*time.Second:
				return fmt.Errorf("--cert-ttl %s is too short; use 2s or more", o.CertTTL)
			case o.Timeout <= 0:
				return fmt.Errorf("--timeout %s is not a time to wait; use for example 60s", o.Timeout)
			}
			if r, ok := local.FindRunning(dir); ok {
				if st, err := newClient(dir).status(cmd.Context()); err == nil && st.Phase == local.Stopping {
					return fmt.Errorf("the mesh that ran here (pid %d) is still stopping; try again when it has, `malha down` waits for that", r.PID)
				}
				return &local.RunningError{Running: r}
			}
			if detach && os.Getenv(eventsFD) == "" {
				return s.detached(cmd.Context(), dir)
			}
			return s.foreground(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&folders, "filename", "f", nil, "folder or file of manifests, a `DIR` (default: the bundled Bookinfo)")
	f.BoolVarP(&detach, "detach", "d", false, "return when the mesh is ready and leave it running")
	f.Var(&door, "gateway-port", "where the first port of the gateway listens; 0: any that is free (default: $MALHA_GATEWAY_PORT, else as the Gateway says; 80 is 8080, 443 is 8443)")
	f.DurationVar(&o.CertTTL, "cert-ttl", 0, "lifetime of the workloads' certificates (default 24h)")
	f.BoolVar(&o.Shared, "other-users", false, "let programs of other users of this machine send through the sidecars, as the workloads, and command the proxies")
	f.BoolVar(&o.AccessLog, "access-log", false, "every proxy writes a JSON line for each request, for malha logs --proxy")
	f.DurationVar(&o.Timeout, "timeout", o.Timeout, "how long the mesh may take to become ready")
	return cmd
}

// gatewayPort is the value of --gateway-port; -1 when there is none.
type gatewayPort struct{ port int }

// Set checks the value.
func (p *gatewayPort) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 65535 {
		return errors.New("is not a port; use one from 1 to 65535, or 0 for any that is free")
	}
	p.port = n
	return nil
}

func (p *gatewayPort) String() string {
	if p.port < 0 {
		return ""
	}
	return strconv.Itoa(p.port)
}

// Type names the value in the help.
func (p *gatewayPort) Type() string { return "port" }

// foreground runs the mesh in this process: for a person, or, when told so by eventsFD, for the command that detached it.
func (s *session) foreground(ctx context.Context, o local.Options) error {
	programs, err := local.FindPrograms()
	if err != nil {
		return err
	}
	o.Programs = programs
	show := newProgress(s)
	if fd, err := strconv.Atoi(os.Getenv(eventsFD)); err == nil && fd > 2 {
		_ = os.Unsetenv(eventsFD) // of no use to the programs
		syscall.CloseOnExec(fd)
		pipe := os.NewFile(uintptr(fd), "events")
		defer pipe.Close()
		enc := json.NewEncoder(pipe)
		show.tell = func(e local.Event) {
			s.render(e)
			_ = enc.Encode(e) // nobody listens any more once the mesh is ready
		}
		o.FailFast = true
	}
	o.Events, o.Console = show.event, show.line
	o.Log = slog.New(slog.NewTextHandler(show, &slog.HandlerOptions{Level: slog.LevelWarn}))

	go show.run()
	soft, stop := context.WithCancel(ctx)
	defer stop()
	hard, kill := context.WithCancel(context.Background())
	defer kill()
	o.Kill = hard
	ended := s.signals(show, stop, kill)
	defer ended()
	defer show.end() // while a pipe that nobody reads does not kill us

	mesh, err := local.New(o)
	if err == nil {
		err = mesh.Run(soft)
	}
	var invalid *local.InvalidError
	if errors.As(err, &invalid) {
		show.event(local.Event{Kind: local.EventDiagnostics, Diagnostics: invalid.Diagnostics})
		err = errors.New(invalid.Error())
	}
	if err != nil {
		show.event(local.Event{Kind: local.EventFailed, Text: err.Error()})
		return exitCode(1)
	}
	text := "the mesh is stopped"
	if hard.Err() != nil {
		text += "; requests in flight were cut off"
	}
	show.event(local.Event{Kind: local.EventNote, Text: text})
	return nil
}

// signals has the first signal to end call stop, and another one kill: a second Ctrl-C, or a third of the others, which timeout(1)
// and a terminal that is closed send twice. The function that it returns ends that.
func (s *session) signals(show *progress, stop, kill func()) (end func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// Who reads what we write may go first, as tee(1) does at the Ctrl-C that reaches us too. A program that does not take this
	// signal is killed by it, in the middle of the end; one that does finds out when it writes.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	s.ui.broken(stop)
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		var hint <-chan time.Time
		for n := 0; ; {
			select {
			case sig := <-signals:
				if n > 0 && sig == os.Interrupt || n > 1 {
					kill()
				}
				n++
				stop()
				if sig == os.Interrupt {
					hint = time.After(3 * time.Second) // most often it is over by then
				}
			case <-hint:
				show.event(local.Event{Kind: local.EventStep, Text: "Ctrl-C again stops at once, and cuts off the requests in flight"})
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(signals)
		signal.Stop(broken)
		close(done)
		watching.Wait()
	}
}

// detached starts this command again in a session of its own, and returns when that mesh is ready or has failed.
func (s *session) detached(ctx context.Context, dir string) error {
	if err := local.MakeState(dir); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find the malha program: %w", err)
	}
	logPath := filepath.Join(dir, "mesh.log")
	how := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if local.Released(dir) { // else it is the log of a mesh that does not answer yet
		how |= os.O_TRUNC
	}
	log, err := os.OpenFile(logPath, how, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write the log of the mesh: %w; choose another state directory with --state DIR", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// The child runs the same command; that it finds eventsFD tells it to stay in the foreground of its own session.
	child := exec.Command(exe, s.args...)
	child.Env = append(os.Environ(), eventsFD+"=3", "NO_COLOR=1")
	child.Stdout, child.Stderr = log, log
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		w.Close()
		return fmt.Errorf("cannot start the mesh: %w", err)
	}
	w.Close()
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	for d := json.NewDecoder(r); ; {
		var e local.Event
		if err := d.Decode(&e); err != nil {
			break
		}
		s.render(e)
		switch e.Kind {
		case local.EventReady:
			return child.Process.Release()
		case local.EventFailed:
			_ = child.Wait()
			return exitCode(1)
		}
	}
	err = child.Wait()
	if ctx.Err() != nil {
		return errors.New("interrupted; the mesh was stopped")
	}
	if err == nil { // an end in order
		return errors.New("the mesh was stopped before it was ready")
	}
	return fmt.Errorf("the mesh ended while it started; its last lines:\n%s\n(all of them: %s)", lastLines(logPath, 10), logPath)
}

func lastLines(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}

// render shows one event: what goes on, on standard error; the finished mesh, on standard output.
func (s *session) render(e local.Event) {
	u := s.ui
	switch e.Kind {
	case local.EventStep:
		u.say("%s %s", paint(u.errColor, dim, "•"), e.Text)
	case local.EventNote:
		u.say("%s %s", paint(u.errColor, green, "✓"), e.Text)
	case local.EventProblem:
		u.say("%s %s", paint(u.errColor, yellow, "!"), e.Text)
	case local.EventDiagnostics:
		u.diagnostics(e.Diagnostics)
	case local.EventFailed:
		u.fail(errors.New(e.Text))
	case local.EventReady:
		s.ready(e)
	}
}

// ready prints what a mesh that is up looks like, and what can be done with it.
func (s *session) ready(e local.Event) {
	u, st := s.ui, e.Status
	u.say("%s %s", paint(u.errColor, green, "✓"), e.Text)
	fmt.Fprintln(u.out)
	s.workloads(st)
	fmt.Fprintln(u.out)
	t := &table{}
	for _, d := range st.Doors {
		url := d.URL
		if st.Bundled {
			url += "/productpage"
		}
		t.row(plain("gateway"), cell{url, bold})
	}
	t.row(plain("metrics"), plain(st.Metrics))
	t.row(plain("folder"), plain(st.Folder))
	u.table(t)
	u.say("\nNext:")
	flag := ""
	if s.state != "" {
		flag = " --state " + shortPath(st.State)
	}
	malha := "malha"
	if exe, err := os.Executable(); err == nil && strings.Contains(exe, "go-build") {
		malha = "go run ./cmd/malha" // that is how this one was started, and there may be no other
	}
	next := &table{}
	hint := func(cmd, what string) { next.row(plain(""), cell{malha + flag + " " + cmd, bold}, plain(what)) }
	hint("status", "each proxy and whether it is in sync")
	if st.Bundled {
		hint("curl --from productpage-v1 -v http://reviews:9080/reviews/0", "a request, and why it went where it went")
	}
	hint("apply -f FILE", "change rules while it runs")
	hint("down", "stop it")
	next.optional = 1
	next.fit(columns(u.err))
	next.write(u.err, u.errColor)
}
