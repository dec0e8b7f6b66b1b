package ctl

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
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
	"syscall"
	"time"

	"github.com/malha-mesh/malha/internal/explain"
)

// Exit codes of curl(1).
const (
	curlConnect     exitCode = 7
	curlHTTP        exitCode = 22
	curlWrite       exitCode = 23
	curlRead        exitCode = 26
	curlTimeout     exitCode = 28
	curlTLS         exitCode = 35
	curlRedirects   exitCode = 47
	curlNoAnswer    exitCode = 52
	curlReceive     exitCode = 56
	curlCertificate exitCode = 60
	interrupted     exitCode = 130 // as a shell calls it: 128 and SIGINT
)

// curlError is why there is no answer, with the code for it.
type curlError struct {
	code exitCode
	err  error
}

func (e *curlError) Error() string { return e.err.Error() }
func (e *curlError) Unwrap() error { return e.err }

// outcome is what -w can tell.
type outcome struct {
	res         *http.Response // nil: none came
	url         *url.URL
	method      string
	first, took time.Duration // until the head, until the end
	size        int64         // of the body that came
	code        exitCode
	err         error
}

// send sends the request through a forward proxy and prints the answer.
func (s *session) send(r *curlRequest, req *http.Request, forward string) error {
	o := &outcome{url: req.URL, method: req.Method}
	began := time.Now()
	err := s.exchange(r, req, forward, o, began)
	o.took = time.Since(began)
	var failed *curlError
	if err != nil {
		if !errors.As(err, &failed) {
			failed = &curlError{1, err}
		}
		o.err, o.code = failed.err, failed.code
		if req.Context().Err() != nil {
			return interrupted // who pressed Ctrl-C knows why
		}
		if !r.silent || r.showError {
			s.ui.fail(failed.err)
		}
	}
	fmt.Fprint(s.ui.out, o.write(r.writeOut))
	if failed != nil {
		return failed.code
	}
	return nil
}

// exchange sends the request and prints the answer while it comes.
func (s *session) exchange(r *curlRequest, req *http.Request, forward string, o *outcome, began time.Time) error {
	transport := &http.Transport{
		Proxy:                  http.ProxyURL(&url.URL{Scheme: "http", Host: forward}),
		DisableCompression:     true, // the answer is shown as it came
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: r.insecure}, // -k asks for it
		OnProxyConnectResponse: tunnel,
	}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: r.timeout, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		switch {
		case !r.follow:
			return http.ErrUseLastResponse
		case len(via) > maxRedirects:
			return &curlError{curlRedirects, fmt.Errorf("it was sent elsewhere more than %d times", maxRedirects)}
		}
		return nil
	}}
	if r.verbose {
		s.ui.say("> %s %s", req.Method, req.URL)
		if req.Host != req.URL.Host {
			s.ui.say("> host: %s", req.Host)
		}
		printHeader(s.ui.err, "> ", req.Header)
	}
	res, err := c.Do(req)
	if err != nil {
		return r.why(err, req.URL, forward)
	}
	defer res.Body.Close()
	o.res, o.url, o.method, o.first = res, res.Request.URL, res.Request.Method, time.Since(began)
	if r.verbose {
		s.ui.say("< %s %s", res.Proto, res.Status)
		printHeader(s.ui.err, "< ", res.Header)
		s.explain(r, res, o.first)
	}
	if r.fail && res.StatusCode >= 400 {
		return &curlError{curlHTTP, fmt.Errorf("the answer is %s", res.Status)}
	}
	out := s.ui.out
	if r.output != "" && r.output != "-" { // without an answer a file stays as it is
		f, err := os.Create(r.output)
		if err != nil {
			return &curlError{curlWrite, fmt.Errorf("cannot write the answer: %w", err)}
		}
		defer f.Close()
		out = f
	}
	if r.include || r.head {
		fmt.Fprintf(out, "%s %s\n", res.Proto, res.Status)
		printHeader(out, "", res.Header)
		fmt.Fprintln(out)
	}
	o.size, err = io.Copy(writer{out}, res.Body)
	var w *writeError
	switch {
	case errors.As(err, &w):
		return &curlError{curlWrite, fmt.Errorf("cannot write the answer: %w", w.err)}
	case err == nil:
		return nil
	case os.IsTimeout(err):
		return r.why(err, req.URL, forward)
	}
	return &curlError{curlReceive, fmt.Errorf("the answer broke off after %d bytes: %w", o.size, err)}
}

// maxRedirects is how often -L follows, as curl does.
const maxRedirects = 50

// tunnel says why the sidecar opens none for https://.
func tunnel(_ context.Context, to *url.URL, req *http.Request, res *http.Response) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	return &curlError{curlReceive, fmt.Errorf("the sidecar at %s opens no tunnel to %s: %s; is it a service of the mesh? those are called by http://, the sidecars do the TLS", to.Host, req.Host, res.Status)}
}

// writer tells an error of who takes the answer from one of who sends it.
type writer struct{ to io.Writer }

type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if err != nil {
		err = &writeError{err}
	}
	return n, err
}

// why says why no answer came, and picks curl's exit code.
func (r *curlRequest) why(err error, u *url.URL, forward string) error {
	var (
		wrapped   *url.Error
		known     *curlError
		op        *net.OpError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		untrusted *tls.CertificateVerificationError
		host      x509.HostnameError
	)
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	secure := u.Scheme == "https"
	plain := fmt.Sprintf("; services of the mesh are called by http://%s, the sidecars do the TLS", u.Host)
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return &curlError{curlTimeout, errors.New("no answer in time; raise --max-time, or see `malha status`")}
	case errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect"):
		return &curlError{curlConnect, fmt.Errorf("the sidecar at %s cannot be reached: %w; see `malha status`", forward, err)}
	case errors.As(err, &untrusted), errors.As(err, &host):
		return &curlError{curlCertificate, fmt.Errorf("the certificate of %s is not trusted: %w; -k trusts any", u.Host, err)}
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return &curlError{curlTLS, fmt.Errorf("%s speaks no TLS%s", u.Host, plain)}
	case secure && (errors.As(err, &alert) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)):
		return &curlError{curlTLS, fmt.Errorf("TLS with %s failed: %w%s", u.Host, err, plain)}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &curlError{curlNoAnswer, errors.New("the sidecar closed the connection without an answer; see `malha logs --proxy`")}
	case errors.Is(err, syscall.ECONNRESET):
		return &curlError{curlReceive, fmt.Errorf("no answer: the connection was reset; see `malha logs --proxy %s`", r.from)}
	}
	return &curlError{1, fmt.Errorf("no answer: %w", err)}
}

// explain prints what the mesh says about a request: the x-malha-* headers that x-malha-explain asks for.
func (s *session) explain(r *curlRequest, res *http.Response, took time.Duration) {
	t := &table{}
	var names []string
	for n := range res.Header {
		if strings.HasPrefix(n, "X-Malha-") && strings.Join(res.Header[n], "") != "" {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		name, value := strings.ToLower(strings.TrimPrefix(n, "X-Malha-")), strings.Join(res.Header[n], ", ")
		if name != "flags" {
			t.row(cell{"* " + name, dim}, plain(value))
			continue
		}
		for _, f := range explain.Flags(value) {
			t.row(cell{"* flag", dim}, plain(strings.TrimSuffix(f.Name+": "+f.Meaning, ": ")))
		}
	}
	t.row(cell{"* status", dim}, plain(res.Status))
	t.row(cell{"* time", dim}, plain(took.Round(10*time.Microsecond).String()))
	if res.Header.Get("X-Malha-Origin") != "" { // a proxy of the mesh made the answer
		t.row(cell{"* why", dim}, plain(fmt.Sprintf("see `malha explain --from %s %s`", r.from, res.Request.URL)))
	}
	t.write(s.ui.err, s.ui.errColor)
}

// writeOuts are the variables of -w that we know.
func (o *outcome) variables() map[string]string {
	v := map[string]string{
		"http_code": "000", "response_code": "000", "content_type": "", "http_version": "0",
		"time_total": seconds6(o.took), "time_starttransfer": seconds6(o.first), "size_download": strconv.FormatInt(o.size, 10),
		"method": o.method, "url": o.url.String(), "url_effective": o.url.String(), "exitcode": strconv.Itoa(int(o.code)), "errormsg": "",
	}
	if o.res != nil {
		code := fmt.Sprintf("%03d", o.res.StatusCode)
		v["http_code"], v["response_code"], v["content_type"] = code, code, o.res.Header.Get("Content-Type")
		v["http_version"] = cmp.Or(map[int]string{2: "2"}[o.res.ProtoMajor], fmt.Sprintf("%d.%d", o.res.ProtoMajor, o.res.ProtoMinor))
	}
	if o.err != nil {
		v["errormsg"] = o.err.Error()
	}
	return v
}

func seconds6(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 6, 64) }

// write returns a -w format with its variables filled in, as curl(1) has them.
func (o *outcome) write(form string) string {
	variables := o.variables()
	text, _ := fill(form, func(name string) (string, bool) {
		if header, ok := headerName(name); ok {
			if o.res == nil {
				return "", true
			}
			return o.res.Header.Get(header), true
		}
		value, ok := variables[name]
		return value, ok
	})
	return text
}

// checkWriteOut refuses a -w with variables that nobody would fill in.
func checkWriteOut(form string) error {
	known := (&outcome{url: &url.URL{}}).variables()
	if _, bad := fill(form, func(name string) (string, bool) {
		_, header := headerName(name)
		_, ok := known[name]
		return "", header || ok
	}); bad != "" {
		names := make([]string, 0, len(known))
		for n := range known {
			names = append(names, n)
		}
		return fmt.Errorf("-w knows no %%{%s}%s", bad, cmp.Or(didYouMean(bad, names), "; `malha curl --help` lists what it knows"))
	}
	return nil
}

// headerName reads header{NAME}.
func headerName(variable string) (string, bool) {
	name, ok := strings.CutPrefix(variable, "header{")
	return name, ok
}

// fill replaces %{name} by its value, %% by %, and \n, \r, \t and \\ by what they stand for. It returns the first name without one.
func fill(form string, value func(name string) (string, bool)) (text, unknown string) {
	var b strings.Builder
	for i := 0; i < len(form); i++ {
		rest := form[i:]
		switch {
		case strings.HasPrefix(rest, "%%"):
			b.WriteByte('%')
			i++
		case strings.HasPrefix(rest, "%header{") && strings.Contains(rest, "}"): // curl writes this one without braces around it
			n := strings.Index(rest, "}")
			v, _ := value(rest[1:n])
			b.WriteString(v)
			i += n
		case strings.HasPrefix(rest, "%{") && strings.Contains(rest, "}"):
			n := strings.Index(rest, "}")
			name := rest[2:n]
			v, ok := value(name)
			if !ok && unknown == "" {
				unknown = name
			}
			b.WriteString(v)
			i += n
		case rest[0] == '\\' && len(rest) > 1 && strings.IndexByte(`nrt\`, rest[1]) >= 0:
			b.WriteByte("\n\r\t\\"[strings.IndexByte(`nrt\`, rest[1])])
			i++
		default:
			b.WriteByte(rest[0])
		}
	}
	return b.String(), unknown
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
