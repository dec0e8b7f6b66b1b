package h1

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1/h1test"
)

var limits = &Limits{RequestLine: h1test.StartLine, Head: h1test.Head, Fields: h1test.Fields, Trailers: h1test.Trailers}

// relay does with the codec what a connection does: it takes bytes as they come and writes what the next hop gets.
type relay struct {
	response bool
	asked    Asked
	minor    uint8 // of the client's version, for a response

	buf    []byte // what came and is not used yet
	scan   Scan
	req    message.Request
	resp   message.Response
	body   Body
	inBody bool
	close  bool // an interim response had a body, they say
	over   bool // no more messages on this connection
	err    error

	wire []byte // all that was written, each piece of a body when it came
	head []byte // heads of the message that is not complete, and its body
	data []byte
	done []string // complete messages in their one form: a body is one piece
	then []string
}

func relayCase(c *h1test.Case) *relay {
	return &relay{response: c.Response, asked: AskedBy([]byte(c.Asked)), minor: c.Minor}
}

func (r *relay) feed(p []byte) {
	r.buf = append(r.buf, p...)
	for len(r.buf) > 0 && !r.over && r.err == nil {
		take := r.takeHead
		if r.inBody {
			take = r.takeBody
		}
		n := take()
		if n == 0 {
			return
		}
		r.buf = r.buf[n:]
	}
}

func (r *relay) takeHead() (n int) {
	var head []byte
	if r.response {
		if n, r.err = ParseResponse(r.buf, &r.scan, &r.resp, r.asked, limits); n == 0 || r.err != nil {
			return 0
		}
		f := ResponseFraming(&r.resp, r.minor)
		persist := Stay
		if r.minor == 0 {
			persist = Keep
			if f == UntilClose {
				persist = Close
			}
		}
		head = AppendResponse(nil, &r.resp, r.asked, f, persist)
		length := r.resp.Length
		if !r.resp.HasBody {
			length = 0
		}
		r.body.Reset(length, r.resp.UntilClose, limits)
	} else {
		if n, r.err = ParseRequest(r.buf, &r.scan, &r.req, limits); n == 0 || r.err != nil {
			return 0
		}
		head = AppendRequest(nil, &r.req)
		r.body.Reset(r.req.Length, false, limits)
	}
	r.scan = Scan{}
	r.wire, r.head = append(r.wire, head...), append(r.head, head...)
	if r.response && r.resp.Status < 200 && r.resp.Status != 101 {
		r.close = r.close || r.resp.Close
		return n // the final one follows
	}
	r.inBody = true
	if r.body.Done() {
		r.finish()
	}
	return n
}

// chunked says whether the body is forwarded in chunks.
func (r *relay) chunked() bool {
	if r.response {
		return r.resp.HasBody && ResponseFraming(&r.resp, r.minor) == Chunked
	}
	return r.req.Length == message.Unknown
}

func (r *relay) takeBody() int {
	data, n, err := r.body.Next(r.buf)
	r.err = err
	if err != nil {
		return n
	}
	r.data = append(r.data, data...)
	switch {
	case len(data) == 0:
	case r.chunked():
		r.wire = AppendChunk(r.wire, data)
	default:
		r.wire = append(r.wire, data...)
	}
	if r.body.Done() {
		r.finish()
	}
	return n
}

func (r *relay) finish() {
	out := r.head
	if r.chunked() {
		if len(r.data) > 0 {
			out = AppendChunk(out, r.data)
		}
		out = AppendLastChunk(out, r.body.Trailers())
		r.wire = AppendLastChunk(r.wire, r.body.Trailers())
	} else {
		out = append(out, r.data...)
	}
	then := ""
	switch {
	case !r.response && len(r.req.Upgrade) > 0:
		then = "tunnel " + string(r.req.Upgrade)
	case !r.response && string(r.req.Method) == "CONNECT":
		then = "tunnel"
	case r.response && r.resp.Status == 101:
		then = "tunnel " + string(r.resp.Upgrade)
	case r.response && (r.close || r.resp.Close), !r.response && r.req.Close:
		then = "close"
	case !r.response && r.req.ExpectContinue:
		then = "expects"
	}
	r.over = then == "close" || strings.HasPrefix(then, "tunnel") || r.response && (r.minor == 0 || r.asked == AskedConnect && r.resp.Status/100 == 2)
	r.done, r.then = append(r.done, string(out)), append(r.then, then)
	r.head, r.data, r.inBody, r.close = nil, nil, false, false
}

// end is the end of the connection.
func (r *relay) end() {
	if r.inBody && r.body.UntilClose() {
		r.finish()
	}
}

func (r *relay) outcome() string {
	s := ""
	for i := range r.done {
		s += fmt.Sprintf("%q then %q; ", r.done[i], r.then[i])
	}
	var e *Error
	if errors.As(r.err, &e) {
		status := e.Status
		if r.response {
			status = 502
		}
		s += fmt.Sprintf("refused %d %s", status, e.Detail)
	}
	return s
}

// run feeds pieces that end at the given places.
func run(c *h1test.Case, in []byte, cuts ...int) *relay {
	r := relayCase(c)
	at := 0
	for _, cut := range append(cuts, len(in)) {
		r.feed(in[at:cut])
		at = cut
	}
	r.end()
	return r
}

func wanted(c *h1test.Case) string {
	switch {
	case c.Status != 0:
		return fmt.Sprintf("refused %d %s", c.Status, c.Detail)
	case c.Waits:
		return ""
	}
	return fmt.Sprintf("%q then %q; ", c.Forwarded, c.Then)
}

func load(tb testing.TB) []h1test.Case {
	cases, err := h1test.Load()
	if err != nil {
		tb.Fatal(err)
	}
	return cases
}

// Every row of the table: at once, cut at every byte, byte by byte, and behind and before other messages.
func TestCases(t *testing.T) {
	t.Parallel()
	cases := load(t)
	for i := range cases {
		checkCase(t, &cases[i])
	}
}

func checkCase(t *testing.T, c *h1test.Case) {
	t.Helper()
	want := wanted(c)
	whole := run(c, c.In)
	if got := whole.outcome(); got != want {
		t.Errorf("%s: %.200q\n got %s\nwant %s", c.Where, c.In, got, want)
		return
	}
	judge(t, c, whole)
	every := 1
	if len(c.In) > 600 {
		every = 61 // a prime: the cuts fall everywhere over all the cases
	}
	var all []int
	for cut := 1; cut < len(c.In); cut++ {
		if all = append(all, cut); cut%every != 0 {
			continue
		}
		if r := run(c, c.In, cut); r.outcome() != want {
			t.Errorf("%s: %.200q\ncut at %d %s\n    whole %s", c.Where, c.In, cut, r.outcome(), want)
			return
		}
	}
	bytewise := run(c, c.In, all...)
	if bytewise.outcome() != want {
		t.Errorf("%s: %.200q\nbyte by byte %s\n       whole %s", c.Where, c.In, bytewise.outcome(), want)
	}
	judge(t, c, bytewise)
	pipeline(t, c, want)
}

// judge lets the second parser read what was forwarded: it sees as many messages as were forwarded, whole and with one
// meaning, and of a message that was refused no end.
func judge(t *testing.T, c *h1test.Case, r *relay) {
	t.Helper()
	asked := c.Asked
	if !c.Response {
		asked = ""
	}
	// What an HTTP/1.0 client gets of a body that breaks off looks whole to it if the connection is closed in good order.
	inPieces, err := h1test.ReadAll(string(r.wire), asked, len(r.done) > 0)
	if len(r.done) == 0 {
		for _, m := range inPieces {
			if !c.Response || m.Start[9] != '1' { // interim responses are forwarded when they come
				t.Errorf("%s: nothing was complete, and %q was forwarded", c.Where, r.wire)
			}
		}
		if len(r.wire) > 0 && err == nil && len(inPieces) == 0 {
			t.Errorf("%s: %q is read as nothing", c.Where, r.wire)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %q was forwarded: %v", c.Where, r.wire, err)
		return
	}
	inOne, err := h1test.ReadAll(strings.Join(r.done, ""), asked, true)
	if err != nil || len(inOne) != len(inPieces) {
		t.Errorf("%s: %q is %d messages (%v), in pieces %d", c.Where, r.done, len(inOne), err, len(inPieces))
		return
	}
	final := 0
	for i, m := range inOne {
		if m.Start != inPieces[i].Start || m.Body != inPieces[i].Body || !slices.Equal(m.Fields, inPieces[i].Fields) || !slices.Equal(m.Tail, inPieces[i].Tail) {
			t.Errorf("%s: %q and %q are not the same", c.Where, r.done, r.wire)
		}
		if !c.Response || m.Start[9] != '1' || strings.HasPrefix(m.Start, "HTTP/1.1 101") {
			final++
		}
	}
	if final != len(r.done) {
		t.Errorf("%s: %d messages are read as %d: %q", c.Where, len(r.done), final, r.wire)
	}
}

// pipeline puts a case between messages that are fine.
func pipeline(t *testing.T, c *h1test.Case, want string) {
	t.Helper()
	fine := "POST /fine HTTP/1.1\r\nHost: fine\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n"
	if c.Response {
		fine = "HTTP/1.1 200 fine\r\nContent-Length: 0\r\n\r\n"
	}
	if c.Waits || c.Asked == "CONNECT" || c.Response && (c.Minor == 0 || run(c, c.In).resp.UntilClose) {
		return // nothing is behind it
	}
	before := run(c, []byte(fine)).outcome()
	if before == "" {
		t.Fatalf("%s: the message that is fine is not", c.Where)
	}
	in := slices.Concat([]byte(fine), c.In, []byte(fine))
	r := run(c, in)
	wantAll := before + want
	if c.Status == 0 && c.Then != "close" && !strings.HasPrefix(c.Then, "tunnel") {
		wantAll += before
	}
	if got := r.outcome(); got != wantAll {
		t.Errorf("%s: %.200q between others\n got %s\nwant %s", c.Where, c.In, got, wantAll)
	}
	if c.Status == 0 {
		judge(t, c, r)
		in = bytes.Repeat(c.In, 3)
		n := 3
		if wantAll == before+want {
			n = 1
		}
		if got := run(c, in).outcome(); got != strings.Repeat(want, n) {
			t.Errorf("%s: %.200q three times\n got %s\nwant %d of %s", c.Where, c.In, got, n, want)
		}
	}
}

// The table is what the project promises it to be: large, and each row with the sentence that it proves.
func TestCasesCount(t *testing.T) {
	cases := load(t)
	requests, refused := 0, 0
	rules := map[string]bool{}
	seen := map[string]string{}
	for i := range cases {
		c := &cases[i]
		if c.Status != 0 {
			refused++
		}
		if !c.Response {
			requests++
		}
		rules[c.Rule] = true
		if !strings.Contains(c.Rule, "RFC ") || !strings.Contains(c.Rule, ":") {
			t.Errorf("%s: %q names no RFC", c.Where, c.Rule)
		}
		key := fmt.Sprintf("%v %s %d %s", c.Response, c.Asked, c.Minor, c.In)
		key += c.Rule // one message can prove several rules
		if other := seen[key]; other != "" {
			t.Errorf("%s: the same as %s", c.Where, other)
		}
		seen[key] = c.Where
		if outcomes := btoi(c.Status != 0) + btoi(c.Waits) + btoi(c.Forwarded != nil); outcomes != 1 {
			t.Errorf("%s: %d outcomes", c.Where, outcomes)
		}
	}
	t.Logf("%d cases (%d requests, %d responses; %d refused) of %d rules", len(cases), requests, len(cases)-requests, refused, len(rules))
	if len(cases) < 600 || len(rules) < 100 {
		t.Errorf("%d cases of %d rules are less than 600 of 100", len(cases), len(rules))
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
