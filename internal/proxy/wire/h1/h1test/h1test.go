// Package h1test has what tests of HTTP/1 share: the table of cases, and a second parser to judge the first by.
//
// The table is the folder testdata, one file a topic. Each case stands under the rule of the RFC that it proves:
//
//	rule RFC 9112 section 5.1: no white space between name and colon …
//
//	request "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"
//	refused 400 http1.bad_field_name
//
//	response HEAD "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
//	forwarded "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
//	then close
//
// Bytes are strings of Go, joined by " + " and repeated by "*count". A response says what was asked: a method, or a method
// and "/1.0" for an HTTP/1.0 client. The outcomes are
//
//	refused STATUS DETAIL   what a client is answered, and why
//	forwarded BYTES         the message, or interim responses and the message, that the next hop gets
//	waits                   more bytes are needed; if none come, nothing complete was forwarded
//
// and after "forwarded" there can be "then close" (the connection ends with this message), "then tunnel [PROTOCOL]" (what
// follows is not HTTP, if the other side agrees) or "then expects" (the client waits for 100).
//
// The package knows nothing of the codec that it is for, and is linked into tests only.
package h1test

import (
	"bufio"
	"embed"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

//go:embed testdata
var testdata embed.FS

// Case is one row of the table.
type Case struct {
	Where string // file:line
	Rule  string // the sentence that it proves, with its section

	Response bool
	Asked    string // method of the request that a response answers
	Minor    uint8  // of the version of the client that asked
	In       []byte

	Status    int // refused: the answer; 0 otherwise
	Detail    string
	Waits     bool
	Forwarded []byte
	Then      string // "", "close", "expects", "tunnel" or "tunnel PROTOCOL"
}

// Limits that the table is written for: bytes of a start line, of a head, of a trailer section, and lines of a section.
const (
	StartLine = 2048
	Head      = 8192
	Trailers  = 1024
	Fields    = 20
)

// Load returns the table in the order of the files.
func Load() ([]Case, error) {
	names, err := fs.Glob(testdata, "testdata/*.txt")
	if err != nil {
		return nil, err
	}
	var all []Case
	for _, name := range names {
		b, err := testdata.ReadFile(name)
		if err != nil {
			return nil, err
		}
		cases, err := parse(name, string(b))
		if err != nil {
			return nil, err
		}
		all = append(all, cases...)
	}
	return all, nil
}

func parse(name, text string) ([]Case, error) {
	var cases []Case
	rule := ""
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		word, rest, _ := strings.Cut(line, " ")
		var err error
		switch word {
		case "", "#":
		case "rule":
			rule = rest
		case "request", "response":
			c := Case{Where: fmt.Sprintf("%s:%d", name, n), Rule: rule, Response: word == "response"}
			if c.Response {
				var version string
				c.Asked, rest, _ = strings.Cut(rest, " ")
				if c.Asked, version, _ = strings.Cut(c.Asked, "/"); version == "" {
					c.Minor = 1
				}
			}
			c.In, err = unquote(rest)
			cases = append(cases, c)
		default:
			if len(cases) == 0 {
				return nil, fmt.Errorf("%s:%d: an outcome before any case", name, n)
			}
			err = cases[len(cases)-1].outcome(word, rest)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	return cases, lines.Err()
}

func (c *Case) outcome(word, rest string) (err error) {
	switch word {
	case "refused":
		var status string
		status, c.Detail, _ = strings.Cut(rest, " ")
		c.Status, err = strconv.Atoi(status)
	case "forwarded":
		c.Forwarded, err = unquote(rest)
	case "waits":
		c.Waits = true
	case "then":
		c.Then = rest
	default:
		err = fmt.Errorf("unknown word %q", word)
	}
	return err
}

// unquote reads strings of Go, joined by " + " and repeated by "*count".
func unquote(s string) ([]byte, error) {
	var out []byte
	for {
		quoted, err := strconv.QuotedPrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%.40q is no string: %w", s, err)
		}
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, err
		}
		s = s[len(quoted):]
		count := 1
		if after, ok := strings.CutPrefix(s, "*"); ok {
			digits := len(after) - len(strings.TrimLeft(after, "0123456789"))
			if count, err = strconv.Atoi(after[:digits]); err != nil {
				return nil, err
			}
			s = after[digits:]
		}
		out = append(out, strings.Repeat(text, count)...)
		if s == "" {
			return out, nil
		}
		after, ok := strings.CutPrefix(s, " + ")
		if !ok {
			return nil, fmt.Errorf("%.40q after a string", s)
		}
		s = after
	}
}
