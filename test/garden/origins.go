package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

//go:embed apps
var apps embed.FS

// origin is one real server behind the proxy, as a child process on a loopback port.
type origin struct {
	name string
	// command returns how it is started; port is where it listens, sink where a gateway sends what it takes.
	command func(g *garden, port, sink int) (*exec.Cmd, error)
	gateway bool // it forwards to a sink of ours, which records; else its application records
	needs   []string

	// same makes requests that this origin's application can't tell apart alike; nil: it can tell all. What stands here is
	// what the origin itself does to requests, each with its reason.
	same func(method, target string) (string, string)

	port, tee int
	records   string // file
	process   *exec.Cmd
	ended     chan struct{} // closed when the process is over
	output    *os.File
}

// python is Debian's, which gunicorn and uvicorn belong to.
func python() string {
	if _, err := os.Stat("/usr/bin/python3"); err == nil {
		return "/usr/bin/python3"
	}
	return "python3"
}

func jars(patterns ...string) string {
	var all []string
	for _, p := range patterns {
		m, _ := filepath.Glob(p)
		all = append(all, m...)
	}
	return strings.Join(all, ":")
}

func java(class string, patterns ...string) func(*garden, int, int) (*exec.Cmd, error) {
	return func(g *garden, _, _ int) (*exec.Cmd, error) {
		classes := filepath.Join(g.dir, "classes-"+class)
		path := jars(patterns...)
		if len(patterns) > 0 && path == "" {
			return nil, fmt.Errorf("no jars at %v", patterns)
		}
		out, err := exec.Command("javac", "-nowarn", "-d", classes, "-cp", path, filepath.Join(g.apps, "Record.java"), filepath.Join(g.apps, class+".java")).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("javac: %w\n%s", err, out)
		}
		return exec.Command("java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", classes+":"+path, class, g.dir), nil
	}
}

func (g *garden) config(name, text string) string {
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		g.fatal(err)
	}
	return path
}

var origins = []*origin{
	{name: "go", command: func(g *garden, _, _ int) (*exec.Cmd, error) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{"GARDEN_GO=1"}
		return cmd, nil
	}},
	{name: "node", needs: []string{"node"}, command: func(g *garden, _, _ int) (*exec.Cmd, error) {
		return exec.Command("node", filepath.Join(g.apps, "echo.js")), nil
	}},
	{name: "python-http.server", needs: []string{python()}, command: func(g *garden, _, _ int) (*exec.Cmd, error) {
		return exec.Command(python(), filepath.Join(g.apps, "server.py")), nil
	}},
	{name: "gunicorn", needs: []string{"gunicorn"}, command: func(g *garden, port, _ int) (*exec.Cmd, error) {
		return exec.Command("gunicorn", "-b", fmt.Sprintf("127.0.0.1:%d", port), "-k", "gthread", "--threads", "8", "--keep-alive", "60",
			"--chdir", g.apps, "--worker-tmp-dir", g.dir, "--log-level", "error", "wsgi"), nil
		// A bug of gunicorn before 22: methods are case-sensitive (RFC 9110 section 9.1), and it takes "get" for GET.
	}, same: func(m, t string) (string, string) { return strings.ToUpper(m), t }},
	{name: "uvicorn", needs: []string{"uvicorn"}, command: func(g *garden, port, _ int) (*exec.Cmd, error) {
		return exec.Command("uvicorn", "--host", "127.0.0.1", "--port", fmt.Sprint(port), "--http", "h11", "--log-level", "error",
			"--timeout-keep-alive", "60", "--app-dir", g.apps, "asgi:application"), nil
	}, same: func(m, t string) (string, string) { return m, strings.TrimSuffix(t, "?") }}, // ASGI has no empty query
	{name: "php", needs: []string{"php"}, command: func(g *garden, port, _ int) (*exec.Cmd, error) {
		return exec.Command("php", "-d", "enable_post_data_reading=0", "-S", fmt.Sprintf("127.0.0.1:%d", port), filepath.Join(g.apps, "echo.php")), nil
	}},
	{name: "puma", needs: []string{"puma"}, command: func(g *garden, port, _ int) (*exec.Cmd, error) {
		return exec.Command("puma", "-q", "-t", "4:8", "-b", fmt.Sprintf("tcp://127.0.0.1:%d", port), filepath.Join(g.apps, "config.ru")), nil
	}},
	{name: "tomcat", needs: []string{"java", "javac"}, command: java("Tomcat", "/usr/share/java/tomcat10-*.jar")},
	{name: "jetty", needs: []string{"java", "javac"}, command: java("Jetty", "/usr/share/java/jetty9-*.jar", "/usr/share/java/servlet-api.jar")},
	{name: "jdk", needs: []string{"java", "javac"}, command: java("Jdk")},
	{name: "nginx", needs: []string{"nginx"}, gateway: true, command: func(g *garden, port, sink int) (*exec.Cmd, error) {
		return exec.Command("nginx", "-c", g.config("nginx.conf", fmt.Sprintf(`
daemon off; master_process off; pid %[1]s/nginx.pid; error_log /dev/null;
events { worker_connections 512; }
http {
  access_log off; client_max_body_size 0; large_client_header_buffers 8 64k; keepalive_requests 1000000; keepalive_timeout 60;
  client_body_temp_path %[1]s/nginx-body; proxy_temp_path %[1]s/nginx-proxy; fastcgi_temp_path %[1]s/nginx-f; uwsgi_temp_path %[1]s/nginx-u; scgi_temp_path %[1]s/nginx-s;
  merge_slashes off;
  server { listen 127.0.0.1:%[2]d; location / { proxy_pass http://127.0.0.1:%[3]d; proxy_http_version 1.1; } }
}`, g.dir, port, sink)), "-p", g.dir), nil
	}},
	{name: "apache", needs: []string{"apache2"}, gateway: true, command: func(g *garden, port, sink int) (*exec.Cmd, error) {
		return exec.Command("apache2", "-X", "-D", "FOREGROUND", "-f", g.config("apache.conf", fmt.Sprintf(`
ServerRoot %[1]s
ServerName localhost
DefaultRuntimeDir %[1]s
PidFile %[1]s/apache.pid
Mutex file:%[1]s
ErrorLog %[1]s/apache.error
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
Listen 127.0.0.1:%[2]d
LimitRequestFieldSize 65536
LimitRequestLine 65536
LimitRequestFields 200
KeepAlive On
KeepAliveTimeout 60
MaxKeepAliveRequests 0
AllowEncodedSlashes NoDecode
MergeSlashes Off
TraceEnable extended
ProxyRequests Off
ProxyPass "/" "http://127.0.0.1:%[3]d/" nocanon
`, g.dir, port, sink))), nil
		// mod_proxy makes one slash of those that a path begins with, also with MergeSlashes Off and nocanon.
	}, same: func(m, t string) (string, string) {
		if strings.HasPrefix(t, "//") {
			t = "/" + strings.TrimLeft(t, "/")
		}
		return m, t
	}},
	{name: "lighttpd", needs: []string{"lighttpd"}, gateway: true, command: func(g *garden, port, sink int) (*exec.Cmd, error) {
		return exec.Command("lighttpd", "-D", "-f", g.config("lighttpd.conf", fmt.Sprintf(`
server.modules = ( "mod_proxy" )
server.document-root = "%[1]s"
server.bind = "127.0.0.1"
server.port = %[2]d
server.errorlog = "%[1]s/lighttpd.error"
server.upload-dirs = ( "%[1]s" )
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = 60
server.max-request-field-size = 65535
server.http-parseopts = ( "url-normalize" => "disable" )
proxy.server = ( "" => (( "host" => "127.0.0.1", "port" => %[3]d )) )
`, g.dir, port, sink))), nil
	}},
	{name: "haproxy", needs: []string{"haproxy"}, gateway: true, command: func(g *garden, port, sink int) (*exec.Cmd, error) {
		return exec.Command("haproxy", "-db", "-f", g.config("haproxy.conf", fmt.Sprintf(`
global
  maxconn 1000
  tune.bufsize 131072
  tune.http.maxhdr 200
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
  timeout http-keep-alive 60s
frontend f
  bind 127.0.0.1:%d
  default_backend b
backend b
  server s 127.0.0.1:%d
`, port, sink))), nil
	}},
	{name: "caddy", needs: []string{"caddy"}, gateway: true, command: func(g *garden, port, sink int) (*exec.Cmd, error) {
		cmd := exec.Command("caddy", "run", "--adapter", "caddyfile", "--config", g.config("Caddyfile", fmt.Sprintf(`
{
	admin off
	auto_https off
}
http://:%d {
	bind 127.0.0.1
	reverse_proxy 127.0.0.1:%d
}
`, port, sink)))
		cmd.Env = []string{"XDG_DATA_HOME=" + g.dir, "XDG_CONFIG_HOME=" + g.dir, "HOME=" + g.dir}
		return cmd, nil
	}, same: decoded}, // it writes characters that RFC 3986 has no room for, like { and |, with %
}

// decoded reads every %XX of a target; a % that begins none stays what it is.
func decoded(method, target string) (string, string) {
	return method, escapes.ReplaceAllStringFunc(target, func(e string) string { return unhex(e[1:]) })
}

var escapes = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// start starts an origin and waits until its port is open.
func (g *garden) start(o *origin) error {
	for _, p := range o.needs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is not installed", p)
		}
	}
	o.port = g.freePort()
	o.records = filepath.Join(g.dir, o.name+".records")
	sink := 0
	if o.gateway {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		sink = ln.Addr().(*net.TCPAddr).Port
		go func() { _ = (&http.Server{Handler: recorder(o.records), MaxHeaderBytes: 1 << 20}).Serve(ln) }()
	}
	cmd, err := o.command(g, o.port, sink)
	if err != nil {
		return err
	}
	cmd.Env = append(append(os.Environ(), cmd.Env...), fmt.Sprintf("GARDEN_PORT=%d", o.port), "GARDEN_LOG="+o.records, "PHP_CLI_SERVER_WORKERS=4", "PYTHONPATH="+g.apps, "PYTHONDONTWRITEBYTECODE=1")
	if o.output, err = os.Create(filepath.Join(g.dir, o.name+".output")); err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = o.output, o.output
	// A group of its own, so that its workers end with it; and no origin outlives the garden.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	o.process, o.ended = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(o.ended)
	}()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && o.alive() == nil; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", o.port))
		if err == nil {
			_ = c.Close()
			return nil
		}
	}
	if err := o.alive(); err != nil {
		return err
	}
	return fmt.Errorf("it does not open its port; it said:\n%s", o.said())
}

// alive returns how an origin ended that was not stopped; nil: it runs.
func (o *origin) alive() error {
	select {
	case <-o.ended:
		return fmt.Errorf("it ended by itself (%s); it said:\n%s", o.process.ProcessState, o.said())
	default:
		return nil
	}
}

func (o *origin) said() []byte {
	b, _ := os.ReadFile(o.output.Name())
	return b
}

// stop ends an origin's own process group.
func (o *origin) stop() {
	if o.process == nil {
		return
	}
	_ = syscall.Kill(-o.process.Process.Pid, syscall.SIGKILL)
	<-o.ended
}

// recorder is the application of the Go origin, and the sink behind origins that are gateways.
func recorder(path string) http.Handler {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, rerr := io.ReadAll(r.Body)
		if err != nil || rerr != nil {
			return
		}
		w.Header().Set("x-garden", "seen")
		_, _ = io.WriteString(f, line(r.Method, r.RequestURI, b))
		_, _ = io.WriteString(w, "ok\n")
	})
}

// line is a request in the form in which all origins record it.
func line(method, target string, body []byte) string {
	h := func(s string) string {
		if s == "" {
			return "-"
		}
		return hex.EncodeToString([]byte(s))
	}
	sum := sha256.Sum256(body)
	return fmt.Sprintf("%s %s %d %x\n", h(method), h(target), len(body), sum[:8])
}

// serveGo is the Go origin, a process of its own like the others.
func serveGo() {
	s := &http.Server{Addr: "127.0.0.1:" + os.Getenv("GARDEN_PORT"), Handler: recorder(os.Getenv("GARDEN_LOG")), DisableGeneralOptionsHandler: true, MaxHeaderBytes: 1 << 20}
	fmt.Fprintln(os.Stderr, s.ListenAndServe())
}

// unpack writes the applications of origins to a folder.
func unpack(dir string) error {
	return fs.WalkDir(apps, "apps", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := apps.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o644)
	})
}
