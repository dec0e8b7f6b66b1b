package h1test

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Message is what Read makes of bytes.
type Message struct {
	Start  string // the first line
	Fields [][2]string
	Body   string // decoded
	Tail   [][2]string
	Tunnel bool // the connection is no longer HTTP after it
}

// Get returns the values of a field, joined by comma.
func (m *Message) Get(name string) string {
	var all []string
	for _, f := range m.Fields {
		if f[0] == name {
			all = append(all, f[1])
		}
	}
	return strings.Join(all, ", ")
}

// ErrIncomplete is a message that has no end.
var ErrIncomplete = errors.New("incomplete message")

// Read reads the first message of what a proxy forwarded, and returns what follows it. asked is "" for a request, and for
// a response the method that was asked. atEnd says that the connection was closed after in.
//
// It is a second opinion, and so written without a look at the codec: slow, obvious, and with no leniency at all. It
// accepts only what a proxy may write, which is less than what it may accept: names in lower case, one space after the
// colon, framing that is said exactly once.
func Read(in, asked string, atEnd bool) (*Message, string, error) {
	head, rest, ok := strings.Cut(in, "\r\n\r\n")
	if !ok {
		return nil, "", ErrIncomplete
	}
	lines := strings.Split(head, "\r\n")
	m := &Message{Start: lines[0]}
	var err error
	if m.Fields, err = readLines(lines[1:]); err != nil {
		return nil, "", err
	}
	if asked == "" {
		err = checkRequest(m)
	} else {
		err = checkResponse(m)
	}
	if err != nil {
		return nil, "", err
	}
	return readBody(m, rest, asked, atEnd)
}

const tokenBytes = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func isToken(s string) bool {
	return s != "" && strings.Trim(s, tokenBytes) == "" && onlyIn(s, tokenBytes)
}

func onlyIn(s, set string) bool {
	for i := range len(s) {
		if !strings.Contains(set, s[i:i+1]) {
			return false
		}
	}
	return true
}

func readLines(lines []string) ([][2]string, error) {
	var fields [][2]string
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ": ")
		if !ok || !isToken(name) || strings.ToLower(name) != name {
			return nil, fmt.Errorf("bad field line %q", line)
		}
		if strings.Trim(value, " \t") != value {
			return nil, fmt.Errorf("white space around the value of %q", line)
		}
		for i := range len(value) {
			if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
				return nil, fmt.Errorf("control byte in %q", line)
			}
		}
		fields = append(fields, [2]string{name, value})
	}
	return fields, nil
}

func checkRequest(m *Message) error {
	part := strings.Split(m.Start, " ")
	if len(part) != 3 || !isToken(part[0]) || part[2] != "HTTP/1.1" {
		return fmt.Errorf("bad request line %q", m.Start)
	}
	hosts := 0
	for _, f := range m.Fields {
		if f[0] == "host" {
			hosts++
		}
	}
	if hosts != 1 {
		return fmt.Errorf("%d Host fields", hosts)
	}
	h := m.Get("host")
	if h == "" || strings.ContainsAny(h, "@/\\?#, \t%\"") || strings.ToLower(h) != h {
		return fmt.Errorf("bad host %q", h)
	}
	target := part[1]
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return fmt.Errorf("bad byte in target %q", target)
		}
	}
	switch path, _, _ := strings.Cut(target, "?"); {
	case part[0] == "CONNECT":
		if i := strings.LastIndexByte(target, ':'); i < 1 || target != h || !onlyIn(target[i+1:], "0123456789") || i == len(target)-1 {
			return fmt.Errorf("bad target %q of CONNECT", target)
		}
		m.Tunnel = true
	case target == "*":
		if part[0] != "OPTIONS" {
			return errors.New("asterisk-form")
		}
	case target[0] != '/':
		return fmt.Errorf("target %q is not in origin-form", target)
	case strings.Contains(path+"/", "/../") || strings.Contains(path+"/", "/./") || strings.Contains(path, "\\"):
		return fmt.Errorf("path %q is not canonical", path)
	}
	if m.Get("upgrade") != "" {
		if !strings.Contains(m.Get("connection"), "upgrade") {
			return errors.New("upgrade without its connection option")
		}
		m.Tunnel = true
	}
	return nil
}

func checkResponse(m *Message) error {
	version, rest, _ := strings.Cut(m.Start, " ")
	code, _, ok := strings.Cut(rest, " ")
	if version != "HTTP/1.1" || !ok || len(code) != 3 || !onlyIn(code, "0123456789") || code < "100" || code > "599" {
		return fmt.Errorf("bad status line %q", m.Start)
	}
	for i := range len(m.Start) {
		if c := m.Start[i]; c < ' ' || c >= 0x7f {
			return fmt.Errorf("bad byte in %q", m.Start)
		}
	}
	return nil
}

// framing returns the length that the fields say: -1 none, -2 chunked.
func framing(m *Message) (int, error) {
	length, said := -1, 0
	for _, f := range m.Fields {
		switch f[0] {
		case "content-length":
			n, err := strconv.Atoi(f[1])
			if err != nil || n < 0 || strconv.Itoa(n) != f[1] {
				return 0, fmt.Errorf("content-length %q", f[1])
			}
			length = n
			said++
		case "transfer-encoding":
			if f[1] != "chunked" {
				return 0, fmt.Errorf("transfer-encoding %q", f[1])
			}
			length = -2
			said++
		}
	}
	if said > 1 {
		return 0, errors.New("framing said twice")
	}
	return length, nil
}

func readBody(m *Message, rest, asked string, atEnd bool) (*Message, string, error) {
	length, err := framing(m)
	if err != nil {
		return nil, "", err
	}
	if asked != "" {
		code := m.Start[9:12]
		switch {
		case code == "101":
			m.Tunnel = true
			fallthrough
		case code < "200" || code == "204":
			if length != -1 {
				return nil, "", fmt.Errorf("framing in a %s", code)
			}
			return m, rest, nil
		case asked == "CONNECT" && code < "300":
			m.Tunnel = true
			if length != -1 {
				return nil, "", errors.New("framing in a tunnel")
			}
			return m, rest, nil
		case asked == "HEAD" || code == "304":
			return m, rest, nil
		case length == -1:
			if !atEnd {
				return nil, "", ErrIncomplete
			}
			m.Body = rest
			return m, "", nil
		}
	}
	switch {
	case length == -2:
		return readChunks(m, rest)
	case length > len(rest):
		return nil, "", ErrIncomplete
	case length > 0:
		m.Body, rest = rest[:length], rest[length:]
	}
	return m, rest, nil
}

func readChunks(m *Message, rest string) (*Message, string, error) {
	for {
		size, after, ok := strings.Cut(rest, "\r\n")
		if !ok {
			return nil, "", ErrIncomplete
		}
		n, err := strconv.ParseUint(size, 16, 62)
		if err != nil || strconv.FormatUint(n, 16) != size {
			return nil, "", fmt.Errorf("chunk size %q", size)
		}
		rest = after
		if n == 0 {
			break
		}
		if uint64(len(rest)) < n+2 {
			return nil, "", ErrIncomplete
		}
		if rest[n:n+2] != "\r\n" {
			return nil, "", fmt.Errorf("%q after a chunk", rest[n:n+2])
		}
		m.Body += rest[:n]
		rest = rest[n+2:]
	}
	for {
		line, after, ok := strings.Cut(rest, "\r\n")
		if !ok {
			return nil, "", ErrIncomplete
		}
		rest = after
		if line == "" {
			return m, rest, nil
		}
		f, err := readLines([]string{line})
		if err != nil {
			return nil, "", err
		}
		m.Tail = append(m.Tail, f...)
	}
}

// ReadAll reads all of a connection's messages. For responses asked is the method of the one request, and the interim
// responses before the final one are messages too.
func ReadAll(in, asked string, atEnd bool) ([]*Message, error) {
	var all []*Message
	for in != "" {
		m, rest, err := Read(in, asked, atEnd)
		if err != nil {
			return all, err
		}
		all = append(all, m)
		if m.Tunnel {
			if rest != "" {
				return all, io.ErrUnexpectedEOF
			}
			return all, nil
		}
		in = rest
	}
	return all, nil
}
