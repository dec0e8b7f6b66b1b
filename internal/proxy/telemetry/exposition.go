package telemetry

import (
	"io"
	"strconv"
	"unicode/utf8"
)

// Writer writes metrics in the Prometheus text exposition format 0.0.4. The first error is kept and
// returned by Flush; nothing is written after it.
type Writer struct {
	w   io.Writer
	b   []byte
	n   int64
	err error
}

// ContentType is the media type of what Writer writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// NewWriter returns a Writer on w. Flush it at the end.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, b: make([]byte, 0, 8<<10)} }

// Family begins a metric family. kind is counter, gauge or histogram. All samples of a family follow it, together.
func (w *Writer) Family(name, kind, help string) {
	w.b = append(w.b, "# HELP "...)
	w.b = append(w.b, name...)
	w.b = append(w.b, ' ')
	w.b = appendEscaped(w.b, help, false)
	w.b = append(w.b, "\n# TYPE "...)
	w.b = append(w.b, name...)
	w.b = append(w.b, ' ')
	w.b = append(w.b, kind...)
	w.b = append(w.b, '\n')
	w.spill()
}

// Label is a name and value.
type Label struct{ Name, Value string }

// Uint writes one sample.
func (w *Writer) Uint(name string, v uint64, labels ...Label) {
	w.sample(name, labels)
	w.b = strconv.AppendUint(w.b, v, 10)
	w.end()
}

// Int writes one sample.
func (w *Writer) Int(name string, v int64, labels ...Label) {
	w.sample(name, labels)
	w.b = strconv.AppendInt(w.b, v, 10)
	w.end()
}

// Float writes one sample.
func (w *Writer) Float(name string, v float64, labels ...Label) {
	w.sample(name, labels)
	w.b = appendFloat(w.b, v)
	w.end()
}

// count writes one sample whose labels are spelled already.
func (w *Writer) count(name string, v uint64, labels []byte) {
	w.spelled(name, "", labels, "")
	w.b = strconv.AppendUint(w.b, v, 10)
	w.end()
}

// histogram writes the cumulative buckets, the sum and the count. counts has one more element than bounds; labels are spelled
// already, and there are some.
func (w *Writer) histogram(name string, bounds []float64, counts []uint64, sum float64, labels []byte) {
	var total uint64
	var room [24]byte
	for i, n := range counts {
		total += n
		le := "+Inf"
		if i < len(bounds) {
			le = string(appendFloat(room[:0], bounds[i]))
		}
		w.spelled(name, "_bucket", labels, le)
		w.b = strconv.AppendUint(w.b, total, 10)
		w.end()
	}
	w.spelled(name, "_sum", labels, "")
	w.b = appendFloat(w.b, sum)
	w.end()
	w.spelled(name, "_count", labels, "")
	w.b = strconv.AppendUint(w.b, total, 10)
	w.end()
}

// spelled begins a sample with labels that are spelled already, and le if that is not empty.
func (w *Writer) spelled(name, suffix string, labels []byte, le string) {
	w.b = append(w.b, name...)
	w.b = append(w.b, suffix...)
	w.b = append(w.b, '{')
	w.b = append(w.b, labels...)
	if le != "" {
		w.b = append(w.b, `,le="`...)
		w.b = append(w.b, le...)
		w.b = append(w.b, '"')
	}
	w.b = append(w.b, "} "...)
}

func (w *Writer) sample(name string, labels []Label) {
	w.b = append(w.b, name...)
	if len(labels) > 0 {
		w.b = append(w.b, '{')
		w.b = appendLabels(w.b, labels)
		w.b = append(w.b, '}')
	}
	w.b = append(w.b, ' ')
}

// appendLabels appends labels as they stand in a sample, without braces.
func appendLabels(b []byte, labels []Label) []byte {
	for i := range labels {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, labels[i].Name...)
		b = append(b, `="`...)
		b = appendEscaped(b, labels[i].Value, true)
		b = append(b, '"')
	}
	return b
}

func (w *Writer) end() {
	w.b = append(w.b, '\n')
	w.spill()
}

func (w *Writer) spill() {
	if len(w.b) > 6<<10 {
		_ = w.Flush() // the error stays in w
	}
}

// Flush hands everything to the io.Writer and returns the first error.
func (w *Writer) Flush() error {
	if w.err == nil && len(w.b) > 0 {
		var n int
		n, w.err = w.w.Write(w.b)
		w.n += int64(n)
	}
	w.b = w.b[:0]
	return w.err
}

// appendEscaped escapes backslash and newline, and the double quote of a label's value (Prometheus, "Text format
// details"). Bytes that are not UTF-8 become U+FFFD: a scraper would refuse the whole page.
func appendEscaped(b []byte, s string, quote bool) []byte {
	for _, r := range s {
		switch {
		case r == '\\':
			b = append(b, `\\`...)
		case r == '\n':
			b = append(b, `\n`...)
		case r == '"' && quote:
			b = append(b, `\"`...)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}

func appendFloat(b []byte, v float64) []byte { return strconv.AppendFloat(b, v, 'f', -1, 64) }
