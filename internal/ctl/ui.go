package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/model"
)

// ui writes to the person: data on out, everything else on err. Colours only where a terminal shows them.
type ui struct {
	out, err           io.Writer
	outColor, errColor bool
	outTTY, errTTY     bool
	lost               *lost               // of out; nil: a terminal
	words              func(string) string // our own name, in what is said; nil: as it is
}

// tell writes to the person.
func (u *ui) tell(text string) {
	if u.words != nil {
		text = u.words(text)
	}
	fmt.Fprint(u.err, text)
}

func newUI(out, err io.Writer) *ui {
	u := &ui{out: out, err: err, outTTY: isTerminal(out), errTTY: isTerminal(err)}
	// https://no-color.org: any value but the empty one.
	plain := os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb"
	u.outColor, u.errColor = u.outTTY && !plain, u.errTTY && !plain
	if !u.outTTY { // of a terminal the size is asked for, and one that has gone has nobody to be told
		u.lost = &lost{Writer: out}
		u.out = u.lost
	}
	return u
}

// lost keeps the first error of writing data, which nobody looks at where it is printed: a script that takes half of
// `malha get` for all of it, on a disk that is full, would go on with that.
type lost struct {
	io.Writer
	first atomic.Pointer[error]
}

func (l *lost) Write(b []byte) (int, error) {
	n, err := l.Writer.Write(b)
	if err != nil {
		l.first.CompareAndSwap(nil, &err)
	}
	return n, err
}

// written returns an error when not all data could be written. A reader who has gone, as `head` does, wants no more.
func (u *ui) written() error {
	if u.lost == nil {
		return nil
	}
	if err := u.lost.first.Load(); err != nil && !errors.Is(*err, syscall.EPIPE) {
		return fmt.Errorf("cannot write the output: %w", *err)
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// broken has then called when a pipe that we write to has nobody left who reads it.
func (u *ui) broken(then func()) {
	for _, w := range []*io.Writer{&u.out, &u.err} {
		if !isTerminal(*w) {
			*w = pipe{*w, then}
		}
	}
}

// pipe tells when nobody reads any more what is written.
type pipe struct {
	io.Writer
	broken func()
}

func (p pipe) Write(b []byte) (int, error) {
	n, err := p.Writer.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		p.broken()
	}
	return n, err
}

// width returns how wide help may be: as the terminal, within reason, and 80 columns elsewhere.
func (u *ui) width() int {
	if f, ok := u.out.(*os.File); ok && u.outTTY {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			return min(max(w, 60), 120)
		}
	}
	return 80
}

// columns returns how wide the terminal is; 0: it is none, or does not say.
func columns(w io.Writer) int {
	if f, ok := w.(*os.File); ok && isTerminal(w) {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil {
			return n
		}
	}
	return 0
}

// wrap fills paragraphs to width columns. Indented lines, which are lists and examples, stay as they are.
func wrap(text string, width int) string {
	var b strings.Builder
	column := 0
	end := func() {
		if column > 0 {
			b.WriteByte('\n')
		}
		column = 0
	}
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" || line[0] == ' ' {
			end()
			b.WriteString(line + "\n")
			continue
		}
		for word := range strings.FieldsSeq(line) {
			n := utf8.RuneCountInString(word)
			switch {
			case column == 0:
			case column+1+n > width:
				end()
			default:
				b.WriteByte(' ')
				column++
			}
			b.WriteString(word)
			column += n
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// style is an SGR parameter (ECMA-48 section 8.3.117).
type style string

const (
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

func paint(on bool, s style, text string) string {
	if !on || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// fail prints the one message of a command that failed.
func (u *ui) fail(err error) {
	u.tell(fmt.Sprintf("%s %v\n", paint(u.errColor, red, "error:"), err))
}

// say prints a line to the person.
func (u *ui) say(format string, args ...any) { u.tell(fmt.Sprintf(format+"\n", args...)) }

// diagnostics prints each on standard error, with the place first so that editors find it.
func (u *ui) diagnostics(ds []model.Diagnostic) {
	for _, d := range ds {
		fmt.Fprint(u.err, renderDiagnostic(d, u.errColor))
	}
}

// renderDiagnostic returns "place: severity CODE: Kind ns/name path: message", and the hint on a line of its own.
func renderDiagnostic(d model.Diagnostic, color bool) string {
	var b strings.Builder
	if p := d.Origin.Place(); p != "" {
		b.WriteString(paint(color, bold, shortPath(p)) + ": ")
	}
	tone := map[model.Severity]style{model.Error: red, model.Warning: yellow, model.Info: cyan}[d.Severity]
	b.WriteString(paint(color, tone, string(d.Severity)))
	if d.Code != "" {
		b.WriteString(" " + d.Code)
	}
	b.WriteString(": ")
	if object := d.Object(); object != "" {
		b.WriteString(object)
		if d.Path != "" {
			b.WriteString(" " + d.Path)
		}
		b.WriteString(": ")
	}
	b.WriteString(d.Message + "\n")
	if d.Hint != "" {
		b.WriteString("    " + paint(color, dim, "fix: ") + d.Hint + "\n")
	}
	return b.String()
}

// shortPath shows a file below the working directory by its relative path.
func shortPath(p string) string {
	wd, err := os.Getwd()
	if err != nil || !filepath.IsAbs(p) {
		return p
	}
	if rel, err := filepath.Rel(wd, p); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return p
}

func absolute(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", fmt.Errorf("cannot resolve %q: %w", p, err)
	}
	return abs, nil
}

// table aligns columns by what is seen, colours left out, two spaces apart.
type table struct {
	rows     [][]cell
	optional int // how many of the last columns are left out where they make lines too long for the terminal
}

type cell struct {
	text string
	tone style
}

func (t *table) header(names ...string) {
	row := make([]cell, len(names))
	for i, n := range names {
		row[i] = cell{n, dim}
	}
	t.rows = append(t.rows, row)
}

func (t *table) row(cells ...cell) { t.rows = append(t.rows, cells) }

func plain(s string) cell { return cell{text: s} }

// fit leaves out optional columns of a table that is wider than the terminal; 0 columns are as many as it takes.
func (t *table) fit(columns int) {
	for ; t.optional > 0 && columns > 0 && t.width() > columns; t.optional-- {
		for i, r := range t.rows {
			t.rows[i] = r[:len(r)-1]
		}
	}
}

// widths returns how wide each column is.
func (t *table) widths() []int {
	var widths []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], seen(c.text))
		}
	}
	return widths
}

// width returns how long the longest line is.
func (t *table) width() int {
	widths := t.widths()
	sum := 2 * (len(widths) - 1)
	for _, n := range widths {
		sum += n
	}
	return sum
}

// table writes a table of data.
func (u *ui) table(t *table) {
	t.fit(columns(u.out))
	t.write(u.out, u.outColor)
}

func (t *table) write(w io.Writer, color bool) {
	widths := t.widths()
	for _, r := range t.rows {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(paint(color && c.tone != "", c.tone, c.text))
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-seen(c.text)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// format is the value of -o.
type format string

// Set checks the value.
func (f *format) Set(s string) error {
	switch s {
	case "table", "yaml", "json":
		*f = format(s)
		return nil
	}
	return fmt.Errorf("must be table, yaml or json")
}

func (f *format) String() string { return string(*f) }

// Type names the value in the help.
func (f *format) Type() string { return "table|yaml|json" }

// encode writes v as JSON or YAML.
func (f format) encode(w io.Writer, v any) error {
	if f == "yaml" {
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// age returns a duration as people say it: "42ms", "12s", "5m", "3h", "2d".
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + age(-d)
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
