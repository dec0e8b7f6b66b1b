package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Exit codes of curl(1).
const (
	curlConnect  exitCode = 7
	curlHTTP     exitCode = 22
	curlTimeout  exitCode = 28
	curlNoAnswer exitCode = 52
)

// curlRequest is what the flags of `malha curl` say.
type curlRequest struct {
	from, method  string
	headers, data []string
	include, fail bool
	verbose       bool
	timeout       time.Duration
}

func (s *session) curl() *cobra.Command {
	r := &curlRequest{}
	cmd := &cobra.Command{
		Use:   "curl --from [NS/]WORKLOAD URL",
		Short: "Send a request as a workload, through its sidecar",
		Long: `Send a real request through the sidecar of a workload, with that workload's identity, as its program would. The body
of the answer goes to standard output. With -v, standard error shows the answer's head and how the mesh decided: the
route, the endpoint, the time.

Exit codes as curl has them: 0 when an answer came, 22 with --fail for a status of 400 or more, 7 when the sidecar could
not be reached, 28 on a timeout, 52 when it closed without an answer.`,
		Example: `  malha curl --from productpage-v1 http://reviews:9080/reviews/0
  malha curl --from productpage-v1 -v -H 'x-canary: true' http://reviews:9080/reviews/0
  malha curl --from production/frontend -d '{"item": 1}' -H 'content-type: application/json' http://backend:8080/api/orders`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.mesh()
			if err != nil {
				return err
			}
			st, err := m.status(cmd.Context())
			if err != nil {
				return err
			}
			p, err := findProxy(st, r.from)
			if err != nil {
				return err
			}
			if p.Forward == "" {
				return fmt.Errorf("%s is a gateway and sends nothing of its own; use `curl $(malha url gateway)`", p.Name)
			}
			req, err := r.build(cmd.Context(), args[0], s.in, "malha/"+s.version)
			if err != nil {
				return err
			}
			return s.send(r, req, p.Forward)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.from, "from", "", "the `WORKLOAD` that sends it")
	f.StringVarP(&r.method, "request", "X", "", "`METHOD` (default GET, POST with -d)")
	f.StringArrayVarP(&r.headers, "header", "H", nil, "header `LINE` 'name: value'; 'name:' leaves one out")
	f.StringArrayVarP(&r.data, "data", "d", nil, "`BODY`; @FILE reads a file, @- standard input")
	f.BoolVarP(&r.include, "include", "i", false, "print the head of the answer too")
	f.BoolVarP(&r.verbose, "verbose", "v", false, "say on standard error who served it and how")
	f.BoolVarP(&r.fail, "fail", "f", false, "print nothing and exit with 22 for a status of 400 or more")
	r.timeout = 30 * time.Second
	f.VarP((*seconds)(&r.timeout), "max-time", "m", "how long it may take: a `TIME`; a number alone is seconds, as for curl")
	_ = cmd.MarkFlagRequired("from")
	_ = cmd.RegisterFlagCompletionFunc("from", s.completeWorkloads)
	return cmd
}

// seconds is a flag value: a duration, or a number of seconds.
type seconds time.Duration

// Set reads "5", "0.5", "5s" or "100ms".
func (s *seconds) Set(text string) error {
	if n, err := strconv.ParseFloat(text, 64); err == nil {
		text = strconv.FormatFloat(n, 'f', -1, 64) + "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return errors.New("is not a time to wait; write it as 5, 0.5 or 100ms")
	}
	*s = seconds(d)
	return nil
}

func (s *seconds) String() string { return time.Duration(*s).String() }

// Type names the value in the help.
func (s *seconds) Type() string { return "duration" }

// build makes the request that the flags describe.
func (r *curlRequest) build(ctx context.Context, raw string, stdin io.Reader, agent string) (*http.Request, error) {
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q is not a URL; write it as http://SERVICE:PORT/PATH", raw)
	}
	var body io.Reader
	method := http.MethodGet
	header := http.Header{"User-Agent": {agent}, "Accept": {"*/*"}}
	if len(r.data) > 0 {
		b, err := readData(r.data, stdin)
		if err != nil {
			return nil, err
		}
		body, method = bytes.NewReader(b), http.MethodPost
		header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if r.method != "" {
		method = r.method
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w; check -X and the URL", err)
	}
	req.Header = header
	seen := map[string]bool{}
	for _, h := range r.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			var empty bool
			if name, empty = strings.CutSuffix(h, ";"); !empty {
				return nil, fmt.Errorf("header %q has no colon; write it as 'name: value'", h)
			}
		}
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		key := http.CanonicalHeaderKey(name)
		switch {
		case key == "Host":
			req.Host = value
		case ok && value == "":
			req.Header[key] = nil // net/http sends no default for a name that is there without values
		case seen[key]:
			req.Header.Add(name, value)
		default:
			req.Header.Set(name, value)
			seen[key] = true
		}
	}
	if r.verbose {
		req.Header.Set("X-Malha-Explain", "1")
	}
	return req, nil
}

// readData joins the -d values with "&", as curl does; files lose their line ends.
func readData(data []string, stdin io.Reader) ([]byte, error) {
	var parts [][]byte
	for _, d := range data {
		name, isFile := strings.CutPrefix(d, "@")
		if !isFile {
			parts = append(parts, []byte(d))
			continue
		}
		var b []byte
		var err error
		if name == "-" {
			b, err = io.ReadAll(stdin)
		} else {
			b, err = os.ReadFile(name)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the body: %w", err)
		}
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), nil)
		parts = append(parts, b)
	}
	return bytes.Join(parts, []byte("&")), nil
}

// send sends the request through a forward proxy and prints the answer.
func (s *session) send(r *curlRequest, req *http.Request, forward string) error {
	transport := &http.Transport{
		Proxy:              http.ProxyURL(&url.URL{Scheme: "http", Host: forward}),
		DisableCompression: true, // the answer is shown as it came
		DisableKeepAlives:  false,
	}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: r.timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if r.verbose {
		s.ui.say("> %s %s", req.Method, req.URL)
		printHeader(s.ui.err, "> ", req.Header)
	}
	began := time.Now()
	res, err := c.Do(req)
	if err != nil {
		return s.curlFailed(err, forward)
	}
	defer res.Body.Close()
	took := time.Since(began)
	if r.verbose {
		s.ui.say("< %s %s", res.Proto, res.Status)
		printHeader(s.ui.err, "< ", res.Header)
		s.explain(res, took)
	}
	if r.fail && res.StatusCode >= 400 {
		s.ui.fail(fmt.Errorf("the answer is %s", res.Status))
		return curlHTTP
	}
	if r.include {
		fmt.Fprintf(s.ui.out, "%s %s\n", res.Proto, res.Status)
		printHeader(s.ui.out, "", res.Header)
		fmt.Fprintln(s.ui.out)
	}
	if _, err := io.Copy(s.ui.out, res.Body); err != nil {
		return s.curlFailed(fmt.Errorf("the answer broke off: %w", err), forward)
	}
	return nil
}

// curlFailed says why no answer came, and picks curl's exit code.
func (s *session) curlFailed(err error, forward string) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		s.ui.fail(errors.New("no answer in time; raise --max-time, or see `malha status`"))
		return curlTimeout
	case errors.As(err, &op) && op.Op == "dial", errors.As(err, &op) && op.Op == "proxyconnect":
		s.ui.fail(fmt.Errorf("the sidecar at %s cannot be reached: %w; see `malha status`", forward, err))
		return curlConnect
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		s.ui.fail(errors.New("the sidecar closed the connection without an answer; see `malha logs --proxy`"))
		return curlNoAnswer
	}
	s.ui.fail(fmt.Errorf("no answer: %w", err))
	return exitCode(1)
}

// explain prints what the mesh says about a request: the x-malha-* headers that x-malha-explain asks for.
func (s *session) explain(res *http.Response, took time.Duration) {
	t := &table{}
	var names []string
	for n := range res.Header {
		if strings.HasPrefix(n, "X-Malha-") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		t.row(cell{"* " + strings.ToLower(strings.TrimPrefix(n, "X-Malha-")), dim}, plain(strings.Join(res.Header[n], ", ")))
	}
	t.row(cell{"* status", dim}, plain(res.Status))
	t.row(cell{"* time", dim}, plain(took.Round(10*time.Microsecond).String()))
	t.write(s.ui.err, s.ui.errColor)
}

func printHeader(w io.Writer, prefix string, h http.Header) {
	names := make([]string, 0, len(h))
	for n := range h {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		for _, v := range h[n] {
			fmt.Fprintf(w, "%s%s: %s\n", prefix, strings.ToLower(n), v)
		}
	}
}
