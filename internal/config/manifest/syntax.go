package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// notText says why a file is no text, and from which line on.
func notText(data []byte) (line int, problem string) {
	if bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
		return 1, "the file is UTF-16, not UTF-8 text"
	}
	line = 1
	for rest := data; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			return line, fmt.Sprintf("the file is not UTF-8 text: it has the byte 0x%02X on this line", rest[0])
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85: // YAML 1.2 section 5.1
			return line, fmt.Sprintf("the file is not text: it has the control character U+%04X on this line", r)
		}
		rest = rest[size:]
	}
	return 0, ""
}

// syntax reports what the YAML library says of a file.
func (p *parser) syntax(data []byte, err error) {
	line, message := syntaxError(err)
	if len(data) <= searched {
		if at := firstLine(data, err); at > line && message == "did not find expected key" {
			line = at
		}
	}
	if name, ok := strings.CutPrefix(message, "unknown anchor '"); ok && line == 0 {
		name, _, _ = strings.Cut(name, "'")
		line = aliasLine(data, name)
	}
	line = min(line, lastLine(data)) // what is missing at the end is said of the line behind it
	text := lineOf(data, line)
	hint := syntaxHints[message]
	switch {
	case strings.HasPrefix(message, "exceeded max depth"):
		p.fail(CodeTooLarge, 0, "", "nested deeper than %d levels", MaxDepth)
		return
	case isConflict(text):
		message, hint = "an unresolved merge conflict", "resolve it"
	case isTemplate(text):
		hint = renderFirst
	case strings.ContainsRune(text[:len(text)-len(strings.TrimLeft(text, " \t"))], '\t'):
		message, hint = "a tab in the indentation", "replace it by spaces" // the library says only that it "cannot start any token"
	case strings.HasPrefix(message, "unknown anchor"):
		hint = "define it above in the same document, or quote a text that starts with *"
	case hint == "":
		hint = "check the indentation and the quotes around this line"
	}
	p.fail(CodeSyntax, line, hint, "not valid YAML: %s", oneLine(message, mostName))
}

// searched is the most bytes that are read again to find the line of a mistake.
const searched = 256 << 10

// renderFirst is what to do with a file that makes manifests.
const renderFirst = "this is a template: render it first (helm template), and use what comes out"

// syntaxHints is what most often was done, by what the library says of it.
var syntaxHints = map[string]string{
	"did not find expected key":                                    "indent this line as the keys above it that it stands beside",
	"did not find expected '-' indicator":                          "indent this line as the list that it belongs to",
	"did not find expected ',' or '}'":                             "close the { that begins on this line, or add the comma that is missing in it",
	"did not find expected ',' or ']'":                             "close the [ that begins on this line, or add the comma that is missing in it",
	"mapping values are not allowed in this context":               "quote a text that holds \": \", or correct the indentation of this line or the one above",
	"could not find expected ':'":                                  "a key has a colon behind it; text of several lines begins with |",
	"found unexpected end of stream":                               "close the quote that begins on this line",
	"did not find expected alphabetic or numeric character":        "quote a text that starts with * or &",
	"found unknown escape character":                               "write the text in single quotes, or each backslash twice",
	"found character that cannot start any token":                  "quote a text that starts with @, %, ` or a tab",
	"found incompatible YAML document":                             "remove the %YAML line",
	"found a tab character that violates indentation":              "replace it by spaces",
	"block sequence entries are not allowed in this context":       "write the list on the lines below its key",
	"found a tab character where an indentation space is expected": "replace it by spaces",
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// parserErrors are what the library's parser says; it counts lines from 0 then, and from 1 in what its scanner says.
var parserErrors = []string{
	"did not find expected <document start>", "did not find expected node content", "did not find expected '-' indicator",
	"did not find expected key", "did not find expected ',' or ']'", "did not find expected ',' or '}'",
	"found undefined tag handle", "found duplicate %YAML directive", "found incompatible YAML document", "found duplicate %TAG directive",
}

// syntaxError takes the line out of an error of the YAML library.
func syntaxError(err error) (line int, message string) {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, err.Error()
	}
	message = strings.TrimPrefix(err.Error(), m[0])
	switch {
	case m[1] != "":
		line, _ = strconv.Atoi(m[1]) // digits by the expression; too many of them mean no line
		if slices.Contains(parserErrors, message) {
			line++
		}
	case !strings.HasPrefix(message, "unknown anchor"):
		line = 1 // the first is not named
	}
	return line, message
}

// firstLine returns the line at which a mistake shows: the library names the beginning of what holds it, which may be far above.
// It reads in one pass, so what is above the mistake does not have it.
func firstLine(data []byte, want error) int {
	var ends []int // of lines
	for i, b := range data {
		if b == '\n' {
			ends = append(ends, i+1)
		}
	}
	ends = append(ends, len(data))
	at, _ := slices.BinarySearchFunc(ends, true, func(end int, _ bool) int {
		d := yaml.NewDecoder(bytes.NewReader(data[:end]))
		for {
			_, err := decode(d)
			switch {
			case err == nil:
				continue
			case errors.Is(err, want) || err.Error() == want.Error():
				return 0
			}
			return -1
		}
	})
	return at + 1
}

var alias = regexp.MustCompile(`\*[0-9A-Za-z_-]+`)

// lastLine returns the number of the last line that is not empty, or a greater one: what else than \n begins a line in YAML
// (version 1.1, section 5.4) is counted one by one.
func lastLine(data []byte) int {
	n := 1
	for _, c := range strings.TrimRight(string(data), " \n\r\t") {
		if strings.ContainsRune("\n\r\u0085\u2028\u2029", c) {
			n++
		}
	}
	return n
}

// aliasLine returns the line of the first use of an anchor, 0 when there is none.
func aliasLine(data []byte, name string) (line int) {
	for text := range bytes.Lines(data) {
		line++
		for _, found := range alias.FindAll(text, -1) {
			if string(found[1:]) == name {
				return line
			}
		}
	}
	return 0
}

// lineOf returns the text of a line, "" when there is none.
func lineOf(data []byte, line int) string {
	n := 0
	for text := range bytes.Lines(data) {
		if n++; n == line {
			return string(text)
		}
	}
	return ""
}

func isTemplate(line string) bool { return strings.Contains(line, "{{") }

// isConflict reports whether a line is one that git leaves where two changes contradict each other.
func isConflict(line string) bool {
	return strings.HasPrefix(line, "<<<<<<<") || strings.HasPrefix(line, "=======") || strings.HasPrefix(line, ">>>>>>>")
}

// mostShown is how many bytes of one value a message shows.
const mostShown = 40

// shown returns a value as a message may show it: on one line, and not longer than a person reads.
func shown(s string) string { return oneLine(s, mostShown) }

// quoted is shown in quotes.
func quoted(s string) string {
	if len(s) > mostShown {
		return strconv.Quote(strings.ToValidUTF8(s[:mostShown], "")) + "…"
	}
	return strconv.Quote(s)
}

// oneLine returns s without characters that steer a terminal or begin a line, and no longer than most bytes.
func oneLine(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	if strings.IndexFunc(s, unicode.IsControl) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsControl(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
