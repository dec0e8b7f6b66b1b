package conn

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1/h1test"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// What a server side of ours accepted, of either protocol, and a client side of ours wrote, in either, is accepted by the next server
// side, which may be another of ours, as the same message; and so by net/http and x/net/http2, which never saw our code.

var (
	h1Limits = &h1.Limits{RequestLine: 1 << 20, Head: 1 << 20, Fields: 1000, Trailers: 1 << 20}
	h2Limits = h2.Limits{Bytes: 1 << 20, Fields: 1000, TrailerBytes: 1 << 20}
)

// shape is what must not change from hop to hop. Where Expect and TE stand among the fields may, as they belong to one hop, and HTTP/2
// joins cookies (RFC 9113 section 8.2.3).
func shape(method, authority, target string, length int64, upgrade string, fields []string) string {
	cookies, at := []string(nil), -1
	fields = slices.DeleteFunc(slices.Clone(fields), func(f string) bool { return strings.HasPrefix(f, "te: ") || strings.HasPrefix(f, "expect: ") })
	for i, f := range fields {
		if value, ok := strings.CutPrefix(f, "cookie: "); ok {
			if value != "" {
				cookies = append(cookies, value)
			}
			if at < 0 {
				at = i
			}
		}
	}
	if at >= 0 {
		fields[at] = "cookies: " + strings.Join(cookies, "; ")
		fields = slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, "cookie: ") })
	}
	return fmt.Sprintf("%s %s %s, body %d, upgrade %q, %q", method, authority, target, length, upgrade, fields)
}

func lines(fs message.Fields) (all []string) {
	for _, f := range fs {
		all = append(all, fmt.Sprintf("%s: %s", f.Name, f.Value))
	}
	return all
}

func requestShape(r *message.Request) string {
	target := string(r.Path)
	if r.HasQuery {
		target += "?" + string(r.Query)
	}
	return shape(string(r.Method), string(r.Authority), target, r.Length, string(r.Upgrade), lines(r.Fields))
}

// readers reads a request that we wrote in each way that somebody may.
func readers(r *message.Request) map[string]func() (string, error) {
	text := h1.AppendRequest(nil, r)
	block := h2.NewEncoder().Request(nil, r)
	end := r.Length == 0 && len(r.Upgrade) == 0
	all := map[string]func() (string, error){
		"ours, HTTP/1.1": func() (string, error) {
			var again message.Request
			n, err := h1.ParseRequest(bytes.Clone(text), &h1.Scan{}, &again, h1Limits)
			if err == nil && n != len(text) {
				err = fmt.Errorf("%d of %d bytes were read", n, len(text))
			}
			return requestShape(&again), err
		},
		"ours, HTTP/2": func() (string, error) {
			var again message.Request
			var a h2.Arena
			err := h2.NewDecoder(h2.InitialTable, h2Limits).Request(block, end, &a, &again)
			if len(again.Upgrade) > 0 {
				again.Length = 0 // as the stack has it (fromExtendedConnect)
			}
			return requestShape(&again), err
		},
		"the second parser": func() (string, error) {
			whole := string(text)
			switch {
			case r.Length > 1<<12:
				return "", errSkip
			case r.Length > 0:
				whole += strings.Repeat("x", int(r.Length))
			case r.Length == message.Unknown:
				whole += "0\r\n\r\n"
			}
			all, err := h1test.ReadAll(whole, "", false)
			if err == nil && len(all) != 1 {
				err = fmt.Errorf("%d messages", len(all))
			}
			if err != nil {
				return "", err
			}
			return requestShape(r), nil
		},
		"net/http": func() (string, error) {
			req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
			if err != nil {
				return "", err
			}
			length := req.ContentLength
			if len(req.TransferEncoding) > 0 {
				length = message.Unknown
			}
			var fields []string // Header has no order between names
			for name, values := range req.Header {
				switch name = strings.ToLower(name); name {
				case "connection", "upgrade", "content-length":
					continue
				}
				for _, v := range values {
					fields = append(fields, name+": "+v)
				}
			}
			slices.Sort(fields)
			sorted := *r
			sorted.Fields = slices.Clone(r.Fields)
			slices.SortFunc(sorted.Fields, func(a, b message.Field) int {
				return strings.Compare(fmt.Sprintf("%s: %s", a.Name, a.Value), fmt.Sprintf("%s: %s", b.Name, b.Value))
			})
			upgrade := strings.ToLower(req.Header.Get("upgrade"))
			if got, want := shape(req.Method, req.Host, req.RequestURI, length, upgrade, fields), requestShape(&sorted); got != want {
				return "", fmt.Errorf("read as\n%s, not\n%s", got, want)
			}
			return requestShape(r), nil
		},
		"x/net/http2": func() (string, error) {
			return requestShape(r), readBlock(block, end)
		},
	}
	if len(r.Upgrade) > 0 && (string(r.Method) != "GET" || !message.IsToken(r.Upgrade)) { // which is not sent so (stream.ErrNoForm)
		delete(all, "ours, HTTP/2")
	}
	return all
}

// errSkip says that a reader has no opinion.
var errSkip = fmt.Errorf("skipped")

// readBlock has x/net/http2 read a header block: names, values, and pseudo fields.
func readBlock(block []byte, end bool) error {
	b := append(h2.BeginHeaders(nil), block...)
	f := http2.NewFramer(io.Discard, bytes.NewReader(h2.EndHeaders(b, 0, 1, end, h2.MinMaxFrame)))
	f.ReadMetaHeaders = hpack.NewDecoder(h2.InitialTable, nil)
	f.MaxHeaderListSize = 1 << 20
	_, err := f.ReadFrame()
	return err
}

// FuzzRequestNextHop looks for requests that become others on their way.
func FuzzRequestNextHop(f *testing.F) {
	cases, err := h1test.Load()
	if err != nil {
		f.Fatal(err)
	}
	for i := range cases {
		if !cases[i].Response {
			f.Add(cases[i].In, false, true)
		}
	}
	enc := h2.NewEncoder()
	for _, r := range []message.Request{
		{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/x")},
		{Method: []byte("POST"), Scheme: []byte("https"), Authority: []byte("a:8"), Path: []byte("/x"), Query: []byte("y"), HasQuery: true, Length: 5,
			Fields: message.Fields{field("cookie", "a=b"), field("te", "trailers"), field("cookie", "")}},
		{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/x"), Upgrade: []byte("websocket")},
		{Method: []byte("PUT"), Scheme: []byte("http"), Authority: []byte("[::1]:8"), Path: []byte("/%2F"), Length: message.Unknown, ExpectContinue: true},
	} {
		f.Add(enc.Request(nil, &r), true, r.Length == 0)
	}
	f.Fuzz(func(t *testing.T, in []byte, two, end bool) {
		var r message.Request
		if two {
			var a h2.Arena
			if err := h2.NewDecoder(h2.InitialTable, h2.Limits{Bytes: 1 << 16, Fields: 100}).Request(in, end, &a, &r); err != nil {
				return
			}
		} else if n, err := h1.ParseRequest(bytes.Clone(in), &h1.Scan{}, &r, h1Limits); err != nil || n == 0 {
			return
		}
		switch method := string(r.Method); {
		case method == "CONNECT": // no stack passes it on
			return
		case method == "TRACE" && r.Length != 0, odd(r.Fields):
			return // the next hop refuses it, as an endpoint may
		case len(r.Upgrade) > 0:
			r.Length = 0 // as the stack has it (fromExtendedConnect)
		}
		want := requestShape(&r)
		for who, read := range readers(&r) {
			if got, err := read(); err != errSkip && (err != nil || got != want) {
				t.Errorf("%s, %x: %s\nis read by %s as\n%s: %v", h1.AppendRequest(nil, &r), in, want, who, got, err)
			}
		}
	})
}

// odd reports whether an HTTP/2 request expects something that HTTP/1 has no name for.
func odd(fs message.Fields) bool {
	for _, f := range fs {
		if string(f.Name) == "expect" && !strings.EqualFold(string(f.Value), "100-continue") {
			return true
		}
	}
	return false
}

// answerShape is shape for a response. Fields that only requests have are of no interest there, and HTTP/2 drops or joins them.
func answerShape(r *message.Response) string {
	length := r.Length
	if !r.HasBody && length < 0 || r.Status < 200 || r.Status == 204 {
		length = 0
	}
	fields := slices.DeleteFunc(slices.Clone(r.Fields), func(f message.Field) bool {
		return slices.Contains([]string{"te", "host", "expect", "cookie"}, string(f.Name))
	})
	return fmt.Sprintf("%d, body %v of %d, upgrade %q, %q", r.Status, r.HasBody && length != 0, length, r.Upgrade, lines(fields))
}

// FuzzResponseNextHop looks for responses that become others on their way.
func FuzzResponseNextHop(f *testing.F) {
	cases, err := h1test.Load()
	if err != nil {
		f.Fatal(err)
	}
	for i := range cases {
		if cases[i].Response {
			f.Add(cases[i].In, false, true, cases[i].Asked == "HEAD")
		}
	}
	enc := h2.NewEncoder()
	for _, r := range []message.Response{
		{Status: 200, HasBody: true, Length: 5, Fields: message.Fields{field("set-cookie", "a=b"), field("set-cookie", ""), field("te", "trailers")}},
		{Status: 204}, {Status: 304, Length: 7}, {Status: 103, Fields: message.Fields{field("link", "x")}},
		{Status: 200, HasBody: true, Length: message.Unknown, Fields: message.Fields{field("date", " x "), field("cookie", "a"), field("cookie", "")}},
	} {
		f.Add(enc.Response(nil, &r), true, !r.HasBody, false)
	}
	f.Fuzz(func(t *testing.T, in []byte, two, end, head bool) {
		asked, method := h1.AskedOther, "GET"
		if head {
			asked, method = h1.AskedHead, "HEAD"
		}
		var r message.Response
		if two {
			var a h2.Arena
			if err := h2.NewDecoder(h2.InitialTable, h2.Limits{Bytes: 1 << 16, Fields: 100, Trim: true}).Response(in, end, head, &a, &r); err != nil {
				return
			}
		} else if n, err := h1.ParseResponse(bytes.Clone(in), &h1.Scan{}, &r, asked, h1Limits); err != nil || n == 0 {
			return
		}
		want := answerShape(&r)
		text := h1.AppendResponse(nil, &r, asked, h1.ResponseFraming(&r, 1), h1.Stay)
		var again message.Response
		if n, err := h1.ParseResponse(bytes.Clone(text), &h1.Scan{}, &again, asked, h1Limits); err != nil || n != len(text) || answerShape(&again) != want {
			t.Errorf("%x is %s\nwritten as %s, of which %d were read as\n%s: %v", in, want, text, n, answerShape(&again), err)
		}
		if resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), &http.Request{Method: method}); err != nil {
			t.Errorf("%x is %s\nwritten as %s, which net/http does not read: %v", in, want, text, err)
		} else if unknown := len(resp.TransferEncoding) > 0; resp.StatusCode != r.Status || r.HasBody && (unknown != (r.Length < 0) || !unknown && resp.ContentLength != r.Length) {
			t.Errorf("%x is %s\nwritten as %s, which net/http reads as %d of %d bytes", in, want, text, resp.StatusCode, resp.ContentLength)
		}
		if r.Status == 101 {
			return // a tunnel, which is a 200 in HTTP/2
		}
		end = r.Status >= 200 && (!r.HasBody || r.Length == 0)
		var a h2.Arena
		again.Reset()
		block := h2.NewEncoder().Response(nil, &r)
		if err := h2.NewDecoder(h2.InitialTable, h2Limits).Response(block, end, head, &a, &again); err != nil || answerShape(&again) != want {
			t.Errorf("%x is %s\nread from HTTP/2 as\n%s: %v", in, want, answerShape(&again), err)
		}
		if err := readBlock(block, end); err != nil {
			t.Errorf("%x is %s\nwhich x/net/http2 does not read: %v", in, want, err)
		}
	})
}
