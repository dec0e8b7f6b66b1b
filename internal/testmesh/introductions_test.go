package testmesh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// TestIntroductions applies the manifests of the well-known introductions to service meshes as people write them, and holds the
// mesh to what those promise, by real requests.
//
// Each archive of testdata/introductions is one introduction: mesh.yaml is there in all of its steps, each other NAME.yaml is a
// step of its own, and the file NAME.requests behind it says, line by line, what comes of requests:
//
//	FROM [Nx] [METHOD] URL [{name: value; …}] => OUTCOME, …
//
// FROM is a workload, whose sidecar sends the request; "gateway" for a client in front of the gateway; or "plaintext" for one
// without a sidecar, that knows where a workload's proxy listens: the URL's host is then NAMESPACE.WORKLOAD. The method CONNECT is a
// TCP connection through the sidecar, over which the request goes. A line that begins with "soon" is tried until it holds.
//
// An OUTCOME has a status (or "closed": there was no answer), the workload that answered, "-" when the mesh did, in front of its percentage
// when there are several, and then what the answer must have: name=value for a header, ~TEXT for a part of the body (what the
// program saw), !TEXT for what must not be in it. Words with spaces stand in quotes.
//
//	seen WORKLOAD PATH N
//
// waits until a workload was asked N times for a path.
func TestIntroductions(t *testing.T) {
	t.Parallel()
	for _, a := range golden.Read(t, "testdata/introductions") {
		t.Run(a.Name(), func(t *testing.T) {
			t.Parallel()
			base, ok := a.Get("mesh.yaml")
			if !ok {
				t.Fatal("the archive has no mesh.yaml")
			}
			intro := &introduction{seen: map[string]int{}}
			intro.m = Start(t, string(base), Options{Handler: intro.program})
			step := ""
			for _, f := range a.Files {
				switch {
				case f.Name == "mesh.yaml":
				case strings.HasSuffix(f.Name, ".yaml"):
					step = strings.TrimSuffix(f.Name, ".yaml")
					if ds := intro.m.Apply(string(base) + "\n---\n" + string(f.Data)); model.HasErrors(ds) {
						t.Fatalf("%s is refused: %v", f.Name, ds)
					}
				case f.Name == step+".requests":
					for line := range strings.Lines(string(f.Data)) {
						if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
							intro.check(t, step, line)
						}
					}
				default:
					t.Fatalf("what is the file %s for?", f.Name)
				}
			}
		})
	}
}

// introduction is one of them at work.
type introduction struct {
	m *Mesh

	mu   sync.Mutex
	seen map[string]int // requests by workload and path, and tries by request
}

// program is what every workload runs. Paths say what it does:
//
//	/status/503      that status
//	/wait            nothing, until the client leaves
//	/only/NAME/503   that status, in the workload NAME
//	/once/503        that status at the first try of a request
//
// x-try counts the tries of a request, whoever of the workloads saw them.
func (in *introduction) program(w ident.Name) http.Handler {
	echo := Echo(w)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		in.mu.Lock()
		in.seen[w.Name+" "+r.URL.Path]++
		id := r.Header.Get("x-request-id") + " " + r.URL.Path
		in.seen[id]++
		try := in.seen[id]
		in.mu.Unlock()
		rw.Header().Set("x-app", w.Name)
		rw.Header().Set("x-try", strconv.Itoa(try))
		part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		status := 200
		switch {
		case part[0] == "status" && len(part) > 1:
			status, _ = strconv.Atoi(part[1])
		case part[0] == "only" && len(part) > 2 && part[1] == w.Name:
			status, _ = strconv.Atoi(part[2])
		case part[0] == "once" && len(part) > 1 && try == 1:
			status, _ = strconv.Atoi(part[1])
		case part[0] == "wait":
			select {
			case <-r.Context().Done():
			case <-time.After(patience):
			}
			return
		}
		if status != 200 {
			rw.WriteHeader(status)
			return
		}
		echo.ServeHTTP(rw, r)
	})
}

// outcome is one that a line allows.
type outcome struct {
	status  string
	by      string
	percent float64 // of the requests; 100 when it is the only one
	more    []string
}

func (in *introduction) check(t *testing.T, step, line string) {
	t.Helper()
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s\n\t%s", step, line, fmt.Sprintf(format, args...))
	}
	left, right, ok := strings.Cut(line, " => ")
	w := words(left)
	if w[0] == "seen" {
		n, err := strconv.Atoi(w[3])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if got := 0; !eventually(func() bool { in.mu.Lock(); defer in.mu.Unlock(); got = in.seen[w[1]+" "+w[2]]; return got >= n }) || got > n {
			bad("it was asked %d times", got)
		}
		return
	}
	if !ok {
		t.Fatalf("%s: no ` => `", line)
	}
	var want []outcome
	for _, s := range split(right, ',') {
		o := outcome{percent: 100}
		for i, word := range words(s) {
			switch p, isPercent := strings.CutSuffix(word, "%"); {
			case i == 0:
				o.status = word
			case i == 1:
				o.by = word
			case isPercent && i == 2:
				o.percent, _ = strconv.ParseFloat(p, 64)
			default:
				o.more = append(o.more, word)
			}
		}
		want = append(want, o)
	}
	soon := w[0] == "soon"
	if soon {
		w = w[1:]
	}
	why := ""
	if held := func() bool { why = in.ask(t, w, want); return why == "" }; !held() && (!soon || !eventually(held)) {
		bad("%s", why)
	}
}

// ask sends the requests of a line, and says what is wrong with what came of them.
func (in *introduction) ask(t *testing.T, w []string, want []outcome) string {
	t.Helper()
	from, n, method := w[0], 1, http.MethodGet
	w = w[1:]
	if count, err := strconv.Atoi(strings.TrimSuffix(w[0], "x")); err == nil {
		n, w = count, w[1:]
	}
	if w[0] == strings.ToUpper(w[0]) {
		method, w = w[0], w[1:]
	}
	to, err := url.Parse(w[0])
	if err != nil {
		t.Fatal(err)
	}
	var headers []string
	if len(w) > 1 {
		headers = strings.Split(strings.Trim(strings.Join(w[1:], " "), "{}"), "; ")
	}
	var client *http.Client
	switch from {
	case "gateway":
		port, _ := strconv.Atoi(to.Port())
		client, headers, to.Host = outside(), append(headers, "Host: "+to.Hostname()), in.m.Gateway(max(port, 80))
	case "plaintext":
		port, _ := strconv.Atoi(to.Port())
		client, to.Host = outside(), in.m.Instance(strings.Replace(to.Hostname(), ".", "/", 1)).Inbound[port]
	default:
		if method == http.MethodConnect {
			method, client = http.MethodGet, in.tunnels(from)
		} else {
			client = in.m.Client(from)
		}
	}
	defer client.CloseIdleConnections()
	got := make([]int, len(want))
	for range n {
		a, err := Try(client, method, to.String(), "", headers...)
		status := strconv.Itoa(a.Status)
		if err != nil {
			status = "closed"
		}
		i := slices.IndexFunc(want, func(o outcome) bool {
			return o.status == status && (o.by == "" || o.by == a.By || o.by == "-" && a.By == "" || strings.HasSuffix(o.by, "*") && strings.HasPrefix(a.By, strings.TrimSuffix(o.by, "*")))
		})
		if i < 0 {
			return fmt.Sprintf("it came to %s by %q (%v)\n%v\n%s", status, a.By, err, a.Header, a.Body)
		}
		for _, m := range want[i].more {
			name, value, isHeader := strings.Cut(m, "=")
			switch {
			case m[0] == '~' && !strings.Contains(strings.ToLower(a.Body), strings.ToLower(m[1:])):
				return fmt.Sprintf("%q is not in\n%s", m[1:], a.Body)
			case m[0] == '!' && strings.Contains(strings.ToLower(a.Body), strings.ToLower(m[1:])):
				return fmt.Sprintf("%q is in\n%s", m[1:], a.Body)
			case m[0] != '~' && m[0] != '!' && isHeader && strings.Join(a.Header.Values(name), ", ") != value:
				return fmt.Sprintf("%s is %q", name, a.Header.Values(name))
			}
		}
		got[i]++
	}
	for i, o := range want {
		p := o.percent / 100
		// Five standard deviations of a binomial distribution never happen.
		if mean := p * float64(n); math.Abs(float64(got[i])-mean) > 5*math.Sqrt(mean*(1-p)) {
			return fmt.Sprintf("%d of %d came to %s %s", got[i], n, o.status, o.by)
		}
	}
	return ""
}

func outside() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// tunnels is a client whose connections are TCP connections through the sidecar of a workload, one for each request.
func (in *introduction) tunnels(from string) *http.Client {
	forward := in.m.Instance(from).Forward
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", forward)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", addr, addr)
		head := make([]byte, 0, 256)
		for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, b[0]) {
			if _, err := io.ReadFull(c, b); err != nil {
				return nil, errors.Join(err, c.Close())
			}
		}
		if resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(head))), nil); err != nil || resp.StatusCode != 200 {
			return nil, errors.Join(errors.New("no tunnel"), err, c.Close())
		}
		return c, nil
	}}}
}

// split cuts s at every sep that is not in quotes.
func split(s string, sep rune) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		quoted = quoted != (r == '"')
		return r == sep && !quoted
	})
}

// words are those of s; quotes hold one together, and are left out.
func words(s string) []string {
	ws := split(s, ' ')
	for i := range ws {
		ws[i] = strings.ReplaceAll(ws[i], `"`, "")
	}
	return ws
}
