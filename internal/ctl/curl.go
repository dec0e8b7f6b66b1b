package ctl

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// curlRequest is what the flags of `malha curl` say.
type curlRequest struct {
	from, method        string
	headers             []string
	data                []curlData
	json, head          bool
	user, agent, cookie string
	follow, insecure    bool
	include, fail       bool
	verbose             bool
	silent, showError   bool
	output, writeOut    string
	timeout             time.Duration // 0: as long as it takes
}

func (s *session) curl() *cobra.Command {
	r := &curlRequest{}
	cmd := &cobra.Command{
		Use:   "curl --from [NS/]WORKLOAD URL",
		Short: "Send a request as a workload, through its sidecar",
		Long: `Send a real request through the sidecar of a workload, with that workload's identity, as its program would. The body
of the answer goes to standard output as it comes. With -v, standard error shows the answer's head and how the mesh
decided: the route, the endpoint, the time.

Flags mean what they mean to curl. Of -w it knows %{http_code}, %{time_total}, %{time_starttransfer}, %{size_download},
%{content_type}, %header{NAME}, %{method}, %{url}, %{exitcode} and %{errormsg}.

Exit codes are curl's: 0 when an answer came, also one that a proxy of the mesh made; 22 with -f for a status of 400 or
more, 7 when the sidecar could not be reached, 28 on a timeout, 35 when TLS failed and 60 when its certificate is not
trusted, 52 when the connection closed without an answer, 56 when it broke, 23 and 26 when a file cannot be written or
read. 1 is a wrong command line, or a mesh that does not run.`,
		Example: `  malha curl --from productpage-v1 http://reviews:9080/reviews/0
  malha curl --from productpage-v1 -v -H 'x-canary: true' http://reviews:9080/reviews/0
  malha curl --from productpage-v1 -s -o /dev/null -w '%{http_code}\n' http://reviews:9080/reviews/0
  malha curl --from reviews-v2 -i -X PUT -d '{"item": 1}' -H 'content-type: application/json' http://ratings:9080/ratings/0`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkWriteOut(r.writeOut); err != nil {
				return err
			}
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
			var failed *curlError
			switch {
			case errors.As(err, &failed):
				s.ui.fail(failed.err)
				return failed.code
			case err != nil:
				return err
			}
			return s.send(r, req, p.Forward)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.from, "from", "", "the `WORKLOAD` that sends it")
	f.StringVarP(&r.method, "request", "X", "", "`METHOD` (default GET, POST with -d)")
	f.BoolVarP(&r.head, "head", "I", false, "ask with HEAD, and print the head of the answer")
	f.StringArrayVarP(&r.headers, "header", "H", nil, "header `LINE` 'name: value'; 'name:' leaves one out, 'name;' is one without a value")
	f.VarP(&dataFlag{r, dataText}, "data", "d", "`BODY`; @FILE reads a file, @- standard input, both without line ends")
	f.Var(&dataFlag{r, dataBinary}, "data-binary", "`BODY`, with its line ends")
	f.Var(&dataFlag{r, dataRaw}, "data-raw", "`BODY`, also when it begins with @")
	f.Var(&dataFlag{r, dataJSON}, "json", "`BODY` as --data-binary has it, of content-type application/json")
	f.StringVarP(&r.user, "user", "u", "", "`NAME:PASSWORD` for basic authentication")
	f.StringVarP(&r.agent, "user-agent", "A", "", "`NAME` to send as user-agent")
	f.StringVarP(&r.cookie, "cookie", "b", "", "`COOKIES` to send: 'name=value; name=value'")
	f.BoolVarP(&r.include, "include", "i", false, "print the head of the answer too")
	f.BoolVarP(&r.verbose, "verbose", "v", false, "say on standard error who served it and how")
	f.StringVarP(&r.output, "output", "o", "", "`FILE` for the body of the answer")
	f.StringVarP(&r.writeOut, "write-out", "w", "", "`FORMAT` of what to print behind the answer: '%{http_code}\\n'")
	f.BoolVarP(&r.silent, "silent", "s", false, "say nothing of errors")
	f.BoolVarP(&r.showError, "show-error", "S", false, "say errors with -s, too")
	f.BoolVarP(&r.fail, "fail", "f", false, "print nothing and exit with 22 for a status of 400 or more")
	f.BoolVarP(&r.follow, "location", "L", false, "go where the answer points to")
	f.BoolVarP(&r.insecure, "insecure", "k", false, "trust any certificate behind https://")
	f.VarP((*seconds)(&r.timeout), "max-time", "m", "how long it may take: a `TIME`; a number alone is seconds (default: as long as it takes)")
	f.BoolP("no-buffer", "N", false, "")   // it never is
	f.Bool("no-progress-meter", false, "") // there is none
	_, _ = f.MarkHidden("no-buffer"), f.MarkHidden("no-progress-meter")
	_ = cmd.MarkFlagRequired("from")
	_ = cmd.MarkFlagFilename("output")
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

func (s *seconds) String() string {
	if *s == 0 {
		return "" // no default to show
	}
	return time.Duration(*s).String()
}

// Type names the value in the help.
func (s *seconds) Type() string { return "duration" }

// curlData is a part of the body.
type curlData struct {
	how  dataKind
	text string
}

// dataKind is the flag that a part of the body came by.
type dataKind int

const (
	dataText   dataKind = iota // -d: @FILE without its line ends
	dataBinary                 // --data-binary: @FILE as it is
	dataRaw                    // --data-raw: no files
	dataJSON                   // --json: as binary, and parts are not joined with &
)

// dataFlag adds parts of the body in the order in which they were given.
type dataFlag struct {
	r   *curlRequest
	how dataKind
}

// Set adds a part.
func (f *dataFlag) Set(text string) error {
	f.r.data = append(f.r.data, curlData{f.how, text})
	f.r.json = f.r.json || f.how == dataJSON
	return nil
}

func (f *dataFlag) String() string { return "" }

// Type names the value in the help.
func (f *dataFlag) Type() string { return "string" }

// escapedOnly escapes what cannot stand in a path, and leaves the rest as it was typed: net/url would spell the whole path anew
// because of one such character, and make a slash of each %2F.
func escapedOnly(path string) string {
	var b strings.Builder
	for i := range len(path) {
		c := path[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~!$&'()*+,;=:@[]/%", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// build makes the request that the flags describe.
func (r *curlRequest) build(ctx context.Context, raw string, stdin io.Reader, agent string) (*http.Request, error) {
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q is not a URL; write it as http://SERVICE:PORT/PATH", raw)
	}
	u.RawPath = escapedOnly(u.RawPath)
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
		if r.json {
			header.Set("Content-Type", "application/json")
			header.Set("Accept", "application/json")
		}
	}
	if r.head {
		if len(r.data) > 0 {
			return nil, errors.New("-I asks for no body and -d sends one; leave one of them out")
		}
		method = http.MethodHead
	}
	if r.method != "" {
		method = r.method
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w; check -X and the URL", err)
	}
	for name, value := range map[string]string{"User-Agent": r.agent, "Cookie": r.cookie, "Authorization": basic(r.user)} {
		if value != "" {
			header.Set(name, value)
		}
	}
	req.Header = header
	if err := r.addHeaders(req); err != nil {
		return nil, err
	}
	if r.verbose {
		req.Header.Set("X-Malha-Explain", "1")
	}
	return req, nil
}

// basic returns the credentials of RFC 7617 section 2, or "".
func basic(user string) string {
	if user == "" {
		return ""
	}
	if !strings.Contains(user, ":") {
		user += ":"
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
}

// addHeaders adds the -H lines: the first of a name takes the place of a default, others are added to it.
func (r *curlRequest) addHeaders(req *http.Request) error {
	seen := map[string]bool{}
	for _, h := range r.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			var empty bool
			if name, empty = strings.CutSuffix(h, ";"); !empty {
				return fmt.Errorf("header %q has no colon; write it as 'name: value'", h)
			}
		}
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		key := http.CanonicalHeaderKey(name)
		switch {
		case key == "Content-Length" || key == "Transfer-Encoding" || key == "Trailer": // net/http would leave them out
			return fmt.Errorf("header %s is written by what sends the body; leave it out", strings.ToLower(key))
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
	return nil
}

// readData joins the parts of the body with "&", as curl does; files given to -d lose their line ends.
func readData(data []curlData, stdin io.Reader) ([]byte, error) {
	var body []byte
	for i, d := range data {
		if i > 0 && d.how != dataJSON {
			body = append(body, '&')
		}
		name, isFile := strings.CutPrefix(d.text, "@")
		if !isFile || d.how == dataRaw {
			body = append(body, d.text...)
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
			return nil, &curlError{curlRead, fmt.Errorf("cannot read the body: %w", err)}
		}
		if d.how == dataText {
			b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), nil)
		}
		body = append(body, b...)
	}
	return body, nil
}
