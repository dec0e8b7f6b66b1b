package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/malha-mesh/malha/internal/ident"
)

const (
	// logRoom is how many bytes of lines wait for a slow sink before lines are dropped.
	logRoom = 256 << 10
	// logBatch is how many bytes make the writer start before logEvery is over.
	logBatch = 32 << 10
	// logEvery is the longest time that a line waits for others to be written with.
	logEvery = 200 * time.Millisecond
	// logFinish is how long the end of Run waits for a sink that does not take what is left.
	logFinish = 2 * time.Second
	// logValue is how many bytes of a value that a peer chose are written: with all of them that long, and none of them
	// readable, a line is still much shorter than logRoom.
	logValue = 4 << 10
)

// AccessLog writes a JSON object for each exchange, one a line, with the keys of Istio's JSON access log and some more
// (docs/proxy.md lists them). It never makes a request wait: lines are collected in memory and written by Run; when the sink
// does not keep up or fails, lines are dropped and counted.
type AccessLog struct {
	// Failed, if set before Run, is told when the sink begins to fail.
	Failed func(error)

	w    io.Writer
	wake chan struct{} // something waits
	full chan struct{} // a batch waits

	mu      sync.Mutex
	pending []byte
	dropped uint64

	// Of the goroutine that writes.
	torn   bool // the sink took a part of a line
	failed bool // the last write
}

// NewAccessLog returns an access log that writes to w, one call for many lines.
func NewAccessLog(w io.Writer) *AccessLog {
	return &AccessLog{w: w, wake: make(chan struct{}, 1), full: make(chan struct{}, 1)}
}

// Dropped returns the number of lines that were lost: there was no room for them, or the sink did not take them.
func (l *AccessLog) Dropped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// line is the room in which a line is spelled before it is put with the others.
type line struct{ b []byte }

var lines = sync.Pool{New: func() any { return &line{b: make([]byte, 0, 1024)} }}

// Write adds a line for r. It does not block and keeps nothing of r.
func (l *AccessLog) Write(r *Record) {
	s := lines.Get().(*line)
	s.b = appendLine(s.b[:0], r)
	l.mu.Lock()
	before := len(l.pending)
	if before+len(s.b) > logRoom {
		l.dropped++
	} else {
		l.pending = append(l.pending, s.b...)
	}
	after := len(l.pending)
	l.mu.Unlock()
	if cap(s.b) <= 16<<10 {
		lines.Put(s)
	}
	if before == 0 {
		signal(l.wake)
	}
	if before < logBatch && after >= logBatch {
		signal(l.full)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run writes until ctx is over, then what is left. It sleeps while there is nothing to write. The error is why lines were lost
// at the end: the sink failed, or took nothing for logFinish. A write that is stuck then (a pipe that nobody reads) ends with
// the process, as nothing else can end it.
func (l *AccessLog) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- l.write(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	finish := time.NewTimer(logFinish)
	defer finish.Stop()
	select {
	case err := <-done:
		return err
	case <-finish.C:
		return errStuck
	}
}

var errStuck = errors.New("nobody reads the access log: a write to it did not end")

// write is the goroutine that writes.
func (l *AccessLog) write(ctx context.Context) error {
	var spare []byte
	timer := time.NewTimer(logEvery)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-l.wake:
			timer.Reset(logEvery)
			select {
			case <-ctx.Done():
			case <-l.full:
			case <-timer.C:
			}
		}
		over := ctx.Err() != nil // asked before the last flush, which takes all that came until then
		var err error
		if spare, err = l.flush(spare); over {
			return err
		}
	}
}

// flush writes what is pending; new lines go to spare meanwhile. It returns the room that was written from.
func (l *AccessLog) flush(spare []byte) ([]byte, error) {
	l.mu.Lock()
	out := l.pending
	l.pending = spare[:0]
	l.mu.Unlock()
	if len(out) == 0 {
		return out, nil
	}
	err := l.put(out)
	if err != nil && !l.failed && l.Failed != nil {
		l.Failed(err)
	}
	l.failed = err != nil
	if len(out) < cap(out)/8 {
		return nil, err // a burst is over: give its room back
	}
	return out[:0], err
}

// put writes lines, and counts those that the sink did not take whole.
func (l *AccessLog) put(out []byte) error {
	if l.torn { // what follows the piece of a line begins one of its own
		if _, err := l.w.Write([]byte{'\n'}); err != nil {
			l.lose(out)
			return err
		}
		l.torn = false
	}
	n, err := l.w.Write(out)
	if err == nil {
		return nil
	}
	n = min(max(n, 0), len(out))
	l.torn = n > 0 && n < len(out) && out[n-1] != '\n'
	l.lose(out[n:])
	return err
}

func (l *AccessLog) lose(lines []byte) {
	n := uint64(bytes.Count(lines, []byte{'\n'}))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped += n
}

// appendLine appends the JSON object and a newline. The keys are Istio's, in its order.
func appendLine(b []byte, r *Record) []byte {
	b = append(b, `{"start_time":"`...)
	b = r.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","method":`...)
	b = appendText(b, r.Method)
	b = append(b, `,"path":`...)
	path := r.Original
	if len(path) == 0 {
		path = r.Path
	}
	if r.HasQuery {
		b = append(b, '"')
		b = appendBounded(b, path)
		b = append(b, '?')
		b = appendBounded(b, r.Query)
		b = append(b, '"')
	} else {
		b = appendText(b, path)
	}
	b = append(b, `,"protocol":`...)
	b = appendText(b, protocolLogNames[r.Protocol])
	b = append(b, `,"response_code":`...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, `,"response_flags":"`...)
	b = r.Flags.Append(b)
	b = append(b, `","response_code_details":`...)
	b = appendText(b, r.Detail)
	b = append(b, `,"connection_termination_details":null,"upstream_transport_failure_reason":`...)
	b = appendText(b, r.Failure)
	b = append(b, `,"bytes_received":`...)
	b = strconv.AppendUint(b, r.BodyIn, 10)
	b = append(b, `,"bytes_sent":`...)
	b = strconv.AppendUint(b, r.BodyOut, 10)
	b = append(b, `,"duration":`...)
	b = strconv.AppendInt(b, r.Duration.Milliseconds(), 10)
	b = append(b, `,"upstream_service_time":`...)
	if r.ServiceTime > 0 {
		b = strconv.AppendInt(b, r.ServiceTime.Milliseconds(), 10)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"x_forwarded_for":`...)
	b = appendText(b, r.ForwardedFor)
	b = append(b, `,"user_agent":`...)
	b = appendText(b, r.UserAgent)
	b = append(b, `,"request_id":`...)
	b = appendText(b, r.RequestID)
	b = append(b, `,"authority":`...)
	b = appendText(b, r.Authority)
	b = append(b, `,"upstream_host":`...)
	if r.Endpoint != nil && !r.UpstreamRemote.IsValid() {
		b = appendText(b, r.Endpoint.Address)
	} else {
		b = appendAddr(b, r.UpstreamRemote)
	}
	b = append(b, `,"upstream_cluster":`...)
	if r.Cluster != nil {
		b = appendText(b, r.Cluster.Name)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"upstream_local_address":`...)
	b = appendAddr(b, r.UpstreamLocal)
	b = append(b, `,"downstream_local_address":`...)
	b = appendAddr(b, r.Local)
	b = append(b, `,"downstream_remote_address":`...)
	b = appendAddr(b, r.Remote)
	b = append(b, `,"requested_server_name":`...)
	b = appendText(b, r.SNI)
	b = append(b, `,"route_name":`...)
	if r.Route != nil {
		b = appendText(b, r.Route.Name)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"route_origin":`...)
	b = appendOrigin(b, r)
	b = append(b, `,"grpc_status":`...)
	if r.GRPCStatus >= 0 {
		b = strconv.AppendInt(b, int64(r.GRPCStatus), 10)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"attempts":`...)
	b = strconv.AppendInt(b, int64(r.Attempts), 10)
	b = append(b, `,"direction":`...)
	b = appendText(b, string(r.Direction))
	b = append(b, `,"downstream_peer":`...)
	if r.MTLS && r.Peer != nil {
		b = appendIdentity(b, &r.Peer.Identity)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"upstream_peer":`...)
	if secured(r.Cluster, r.Endpoint) {
		b = appendIdentity(b, &r.Endpoint.Identity)
	} else {
		b = append(b, "null"...)
	}
	return append(b, '}', '\n')
}

// appendIdentity appends the SPIFFE URI of a workload, which ident.Identity.URI returns.
func appendIdentity(b []byte, id *ident.Identity) []byte {
	b = append(b, `"spiffe://`...)
	b = appendContent(b, id.TrustDomain)
	b = append(b, "/ns/"...)
	b = appendContent(b, id.Namespace)
	b = append(b, "/sa/"...)
	b = appendContent(b, id.ServiceAccount)
	return append(b, '"')
}

// appendOrigin appends what ident.Origin.String returns, without making that string: of the rule that decided, else of the
// listener, or that one's name where no object asked for it.
func appendOrigin(b []byte, r *Record) []byte {
	o := r.Origin
	if (o == nil || o.IsZero()) && r.Listener != nil {
		o = &r.Listener.Origin
	}
	if o == nil || o.IsZero() {
		if r.Listener == nil {
			return append(b, "null"...)
		}
		b = append(b, `"listener `...)
		b = appendContent(b, r.Listener.Name)
		return append(b, '"')
	}
	b = append(b, '"')
	start := len(b)
	if o.Kind != "" {
		b = appendContent(b, o.Kind)
		b = append(b, '/')
		if o.Namespace != "" {
			b = appendContent(b, o.Namespace)
			b = append(b, '/')
		}
		b = appendContent(b, o.Name)
	}
	if o.Rule != "" {
		if len(b) > start {
			b = append(b, ' ')
		}
		b = appendContent(b, o.Rule)
	}
	if o.File != "" {
		b = append(b, " ("...)
		b = appendContent(b, o.File)
		if o.Line != 0 {
			b = append(b, ':')
			b = strconv.AppendInt(b, int64(o.Line), 10)
		}
		b = append(b, ')')
	}
	return append(b, '"')
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = a.AppendTo(b)
	return append(b, '"')
}

func appendText[T string | []byte](b []byte, s T) []byte {
	if len(s) == 0 {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = appendBounded(b, s)
	return append(b, '"')
}

// appendBounded appends at most logValue bytes of what a peer sent, and "…" for the rest.
func appendBounded[T string | []byte](b []byte, s T) []byte {
	if len(s) <= logValue {
		return appendContent(b, s)
	}
	n := logValue
	for n > logValue-utf8.UTFMax && !utf8.RuneStart(s[n]) { // not within a character
		n--
	}
	return append(appendContent(b, s[:n]), "…"...)
}

const hex = "0123456789abcdef"

// appendContent appends s as the inside of a JSON string (RFC 8259 section 7). Control bytes, also DEL and the C1 set
// that terminals obey, are escaped, and what is not UTF-8 becomes U+FFFD: a line is one line and valid JSON whatever a
// client sends.
func appendContent[T string | []byte](b []byte, s T) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c >= 0x20 && c < 0x7f:
			b = append(b, c)
			i++
		case c < utf8.RuneSelf:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			i++
		default:
			r, n := decodeRune(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				b = append(b, "\ufffd"...)
			case r < 0xa0, r == 0x2028, r == 0x2029: // C1, and the line ends of JavaScript
				b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
			default:
				b = append(b, s[i:i+n]...)
			}
			i += n
		}
	}
	return b
}

func decodeRune[T string | []byte](s T) (rune, int) {
	var room [utf8.UTFMax]byte
	return utf8.DecodeRune(room[:copy(room[:], s)])
}
