package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// counted is what the proxy's access log says about one exchange.
type counted struct {
	Method  string  `json:"method"`
	Path    string  `json:"path"`
	Status  int     `json:"response_code"`
	Flags   string  `json:"response_flags"`
	Details string  `json:"response_code_details"`
	Cluster *string `json:"upstream_cluster"`
	Host    *string `json:"upstream_host"`
	raw     string
}

// readAccessLog returns the exchanges that were sent to an origin, and those that were not (under ""), by origin.
func readAccessLog(path string) (map[string][]*counted, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	out := map[string][]*counted{}
	s := bufio.NewScanner(f)
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		c := &counted{raw: s.Text()}
		if err := json.Unmarshal(s.Bytes(), c); err != nil {
			return nil, fmt.Errorf("a line of the access log can't be read: %w: %.300q", err, s.Text())
		}
		if c.Cluster == nil || c.Host == nil {
			out[""] = append(out[""], c)
			continue
		}
		out[*c.Cluster] = append(out[*c.Cluster], c)
	}
	return out, s.Err()
}

// verdict is what the comparison of one origin found.
type verdict struct {
	refused, forwarded, seen, declined, cut int
	mismatches                              []string
}

var idPattern = regexp.MustCompile(`[a-z.0-9]+-?[a-z.0-9]*-q[0-9]{6}q[0-9a-f]{8}`)

// story is all that there is about one message.
type story struct {
	blob    *blob
	sent    []*forwarded // in the order in which they went out
	records []string     // in the order in which the application saw them
	counted []*counted
}

// compare tells all accounts of all messages for one origin against each other.
func compare(o *origin, blobs []*blob, t *tee, log []*counted) *verdict {
	v := &verdict{}
	stories := map[string]*story{"": {}}
	of := func(target string) *story {
		id := idPattern.FindString(target)
		if stories[id] == nil {
			id = "" // messages that lost their name
		}
		return stories[id]
	}
	for _, b := range blobs {
		stories[b.id] = &story{blob: b}
	}
	var all []*forwarded
	for _, c := range t.conns {
		all = append(all, c.forwarded()...)
	}
	slices.SortStableFunc(all, func(a, b *forwarded) int { return a.order - b.order })
	for _, f := range all {
		name := f.target
		if name == "" {
			name = string(f.raw)
		}
		if o.same != nil {
			_, name = o.same("", name)
		}
		of(name).sent = append(of(name).sent, f)
	}
	lines, err := os.ReadFile(o.records)
	if err != nil && !os.IsNotExist(err) {
		v.mismatches = append(v.mismatches, err.Error())
	}
	for l := range strings.Lines(string(lines)) {
		l = o.comparable(l)
		target := unhex(strings.Fields(l)[1])
		of(target).records = append(of(target).records, l)
	}
	for _, c := range log {
		name := c.Path
		if o.same != nil {
			_, name = o.same("", name)
		}
		of(name).counted = append(of(name).counted, c)
	}
	names := make([]string, 0, len(stories))
	for id := range stories {
		names = append(names, id)
	}
	slices.Sort(names)
	for _, id := range names {
		s := stories[id]
		if why := s.check(o, v); why != "" {
			v.mismatches = append(v.mismatches, s.tell(why))
		}
	}
	return v
}

// check returns what does not fit, "" when everything does.
func (s *story) check(o *origin, v *verdict) string {
	if len(s.sent) == 0 {
		v.refused++
	}
	left := slices.Clone(s.records)
	ordered := s.blob != nil && s.blob.h2 == nil // HTTP/2 requests go out at the same time
	take := func(l string) bool {
		for i, r := range left {
			if r == l {
				left = slices.Delete(left, i, i+1)
				return true
			}
			if ordered {
				break
			}
		}
		return false
	}
	answered := 0
	certain := map[string]int{} // how often each line must have been seen
	for _, f := range s.sent {
		if f.answered && f.seen {
			certain[o.comparable(f.line)]++
		}
	}
	spare := func(l string) bool {
		n := 0
		for _, r := range left {
			if r == l {
				n++
			}
		}
		return n > certain[l]
	}
	for _, f := range s.sent {
		v.forwarded++
		if f.answered {
			answered++
		}
		switch {
		case f.problem != "":
			return f.problem
		case !f.whole || !f.answered || !f.seen && f.last && s.clientLeft():
			// The client left, or its body broke off: the origin may have seen a whole request, but no other.
			v.cut++
			if l := o.comparable(f.line); f.whole && spare(l) {
				take(l)
			}
		case !f.seen:
			// The origin answered itself: it is stricter than its application needs. A gateway may do so after it has asked
			// the application (lighttpd, for a Range that can't be had).
			v.declined++
			if l := o.comparable(f.line); spare(l) {
				take(l)
			}
			if f.status < 400 && f.status != 101 && !passive(f) {
				return fmt.Sprintf("status %d did not come from the application", f.status)
			}
		case !take(o.comparable(f.line)):
			return fmt.Sprintf("the origin's application did not see, or not in this order: %s", pretty(f.line))
		default:
			certain[o.comparable(f.line)]--
			v.seen++
		}
	}
	if len(left) > 0 {
		return fmt.Sprintf("the origin's application saw what was not forwarded: %s", pretty(left[0]))
	}
	via := 0
	for _, c := range s.counted {
		if c.Details == "via_upstream" {
			via++
		}
	}
	if via > answered || via < answered && s.blob != nil && s.blob.want != nil {
		return fmt.Sprintf("the proxy counted %d requests that an origin answered, the wire has %d", via, answered)
	}
	if len(s.counted) < answered {
		return fmt.Sprintf("the proxy counted %d requests that it forwarded, the wire has %d", len(s.counted), answered)
	}
	sent, why := s.once()
	if why != "" || s.blob == nil || s.blob.want == nil {
		return why
	}
	if len(sent) < len(s.blob.want) && len(sent) > 0 && bytes.Contains(s.blob.got, []byte("connection: close")) && !bytes.Contains(s.blob.got, []byte("\r\n\r\nhttp1.")) {
		// Who answers "close" leaves the rest to be sent again: after an Expect whose body came unasked, for example.
	} else if len(sent) != len(s.blob.want) {
		return fmt.Sprintf("%d requests were meant, %d forwarded", len(s.blob.want), len(sent))
	}
	for i, w := range s.blob.want[:len(sent)] {
		f := sent[i]
		target := w.target
		if target == "" {
			target = f.target
		}
		if early := f.answered && !f.whole && !f.seen; early {
			continue // the origin refused it before it had the body
		}
		if l := line(w.method, target, []byte(w.body)); l != f.line {
			return fmt.Sprintf("request %d was meant as %s and forwarded as %s", i, pretty(l), pretty(f.line))
		}
	}
	return ""
}

// clientLeft reports whether the proxy says that the client left before it had its answer. What an origin says on a
// connection that is being closed for that reason is for nobody.
func (s *story) clientLeft() bool {
	return slices.ContainsFunc(s.counted, func(c *counted) bool { return strings.Contains(c.Flags, "DC") })
}

// once returns what was sent, without first attempts that nobody answered: a request may be tried again on another connection
// when the one that it went out on ends, if saying it twice does no harm (RFC 9110 section 9.2.2).
func (s *story) once() (sent []*forwarded, why string) {
	for i, f := range s.sent {
		again := i+1 < len(s.sent) && f.line != "" && s.sent[i+1].line == f.line && f.requestID != "" && s.sent[i+1].requestID == f.requestID
		switch {
		case !again:
			sent = append(sent, f)
		case f.answered:
			return nil, fmt.Sprintf("the proxy sent it again although it was answered: %s", pretty(f.line))
		case f.method == "POST" || f.method == "PATCH":
			return nil, fmt.Sprintf("the proxy sent twice what may do harm: %s", pretty(f.line))
		}
	}
	return sent, ""
}

// comparable returns a record in the form that this origin can tell.
func (o *origin) comparable(l string) string {
	if o.same == nil {
		return l
	}
	p := strings.Fields(l)
	m, t := o.same(unhex(p[0]), unhex(p[1]))
	p[0], p[1] = hex.EncodeToString([]byte(m)), hex.EncodeToString([]byte(t))
	return strings.Join(p, " ") + "\n"
}

// passive tells answers that servers give for their applications by the standard: OPTIONS * and TRACE.
func passive(f *forwarded) bool { return f.method == "OPTIONS" || f.method == "TRACE" }

func unhex(s string) string {
	b, err := hex.DecodeString(s)
	if err != nil {
		return ""
	}
	return string(b)
}

func pretty(l string) string {
	p := strings.Fields(l)
	return fmt.Sprintf("%.60q %.200q with a body of %s bytes (%s)", unhex(p[0]), unhex(p[1]), p[2], p[3])
}

var runs = regexp.MustCompile(`z{40,}|(k=v&){10,}|v{40,}|q{40,}|(X: y\\r\\n){5,}|x{40,}|y{40,}`)

// squeeze shortens what generators repeat.
func squeeze(s string) string {
	return runs.ReplaceAllStringFunc(s, func(r string) string { return fmt.Sprintf("%s<%d bytes>", r[:4], len(r)) })
}

func (s *story) tell(why string) string { return squeeze(s.all(why)) }

func (s *story) all(why string) string {
	var b strings.Builder
	b.WriteString(why + "\n")
	if s.blob != nil {
		fmt.Fprintf(&b, "   message %s (%s), in pieces at %v\n", s.blob.id, s.blob.kind, s.blob.cuts)
		if s.blob.h2 != nil {
			fmt.Fprintf(&b, "   said: %q\n", fmt.Sprint(s.blob.h2))
		} else {
			fmt.Fprintf(&b, "   said: %q\n", s.blob.raw)
		}
		fmt.Fprintf(&b, "   got back: %q\n", s.blob.got)
	}
	for _, f := range s.sent {
		fmt.Fprintf(&b, "   forwarded (whole %v, answered %v %d, by the application %v): %q\n", f.whole, f.answered, f.status, f.seen, f.raw)
	}
	for _, r := range s.records {
		fmt.Fprintf(&b, "   seen: %s\n", pretty(r))
	}
	for _, c := range s.counted {
		fmt.Fprintf(&b, "   counted: %.600s\n", c.raw)
	}
	return b.String()
}
