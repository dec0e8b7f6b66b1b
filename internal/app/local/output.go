package local

import (
	"bytes"
	"sync"
	"time"
)

const (
	keepLines   = 500      // of each source, for `malha logs` and crash messages
	maxLine     = 16 << 10 // longer lines are broken
	followQueue = 1024     // lines a slow reader may lag behind before it misses some
)

// Line is one line that a program or proxy of the mesh wrote.
type Line struct {
	Time   time.Time `json:"time"`
	Source string    `json:"source"` // "default/reviews-v2", "default/reviews-v2 proxy"
	Stream string    `json:"stream"` // "stdout" or "stderr"
	Text   string    `json:"text"`
}

// output collects what all children write: it keeps the last lines of each, hands every line to the console and to
// whoever follows. Its memory is bounded by keepLines and maxLine for each source that there is.
type output struct {
	console func(Line) // called in order, one at a time; nil for none

	mu        sync.Mutex
	sources   map[string]*ring
	followers map[*follower]struct{}
}

type ring struct {
	lines []Line
	next  int // where the oldest is once the ring is full
}

type follower struct {
	source string
	lines  chan Line
}

func newOutput(console func(Line)) *output {
	return &output{console: console, sources: make(map[string]*ring), followers: make(map[*follower]struct{})}
}

func (o *output) add(l Line) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.sources[l.Source]
	if r == nil {
		r = &ring{}
		o.sources[l.Source] = r
	}
	if len(r.lines) < keepLines {
		r.lines = append(r.lines, l)
	} else {
		r.lines[r.next] = l
		r.next = (r.next + 1) % keepLines
	}
	for f := range o.followers {
		if f.source == l.Source {
			select {
			case f.lines <- l:
			default: // the reader is too slow: it misses the line, the program is not held up
			}
		}
	}
	if o.console != nil {
		o.console(l)
	}
}

// forget drops what sources wrote that are no more: nobody can ask for it.
func (o *output) forget(sources ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range sources {
		delete(o.sources, s)
	}
}

// tail returns the last n lines of a source, oldest first.
func (o *output) tail(source string, n int) []Line {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last(source, n)
}

// last is tail; its caller holds mu.
func (o *output) last(source string, n int) []Line {
	r := o.sources[source]
	if r == nil {
		return nil
	}
	all := append(append(make([]Line, 0, len(r.lines)), r.lines[r.next:]...), r.lines[:r.next]...)
	return all[max(0, len(all)-n):]
}

// follow returns the last n lines of a source, those that it writes from then on, and a function that ends it.
func (o *output) follow(source string, n int) (last []Line, next <-chan Line, stop func()) {
	f := &follower{source: source, lines: make(chan Line, followQueue)}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.followers[f] = struct{}{}
	return o.last(source, n), f.lines, func() {
		o.mu.Lock()
		delete(o.followers, f)
		o.mu.Unlock()
	}
}

// writer returns a writer that cuts one stream of one source into lines.
func (o *output) writer(source, stream string) *lineWriter {
	return &lineWriter{out: o, source: source, stream: stream}
}

// lineWriter cuts a stream into lines. os/exec writes to it from one goroutine for each stream.
type lineWriter struct {
	out            *output
	source, stream string

	mu   sync.Mutex
	rest []byte // the line that has no end yet
}

// Write never fails.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		w.rest = append(w.rest, p[:i]...)
		w.emit()
		p = p[i+1:]
	}
	w.rest = append(w.rest, p...)
	for len(w.rest) > maxLine {
		w.emit()
	}
	return n, nil
}

// flush emits what was written without a line end.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.emit()
	}
}

func (w *lineWriter) emit() {
	line := w.rest
	var more []byte
	if len(line) > maxLine {
		line, more = line[:maxLine], line[maxLine:]
	}
	text := string(bytes.ToValidUTF8(bytes.TrimSuffix(line, []byte("\r")), []byte("\uFFFD")))
	w.out.add(Line{Time: time.Now(), Source: w.source, Stream: w.stream, Text: text})
	w.rest = append(w.rest[:0], more...)
}
