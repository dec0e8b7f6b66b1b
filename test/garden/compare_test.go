package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompare shows that the comparison finds what it is for.
func TestCompare(t *testing.T) {
	const id = "go-q000000q00000001"
	a := "GET /" + id + "/0 HTTP/1.1\r\nHost: h\r\n\r\n"
	b := "POST /" + id + "/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
	seenA, seenB := line("GET", "/"+id+"/0", nil), line("POST", "/"+id+"/1", []byte("hello"))
	ok := "HTTP/1.1 200 OK\r\nx-garden: seen\r\nContent-Length: 0\r\n\r\n"
	declined := "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
	via := func(path string) *counted { return &counted{Path: "/" + id + path, Details: "via_upstream"} }
	both := []*counted{via("/0"), via("/1")}
	wants := []want{{method: "GET", target: "/" + id + "/0"}, {method: "POST", target: "/" + id + "/1", body: "hello"}}
	for _, tc := range []struct {
		name, asked, answers, records string
		counted                       []*counted
		want                          []want
		mismatch                      string
	}{
		{"as it should be", a + b, ok + ok, seenA + seenB, both, wants, ""},
		{"declined by the origin", a + b, declined + ok, seenB, both, wants, ""},
		{"cut off", a + b[:len(b)-1], ok, seenA, both[:1], nil, ""},
		{"smuggled", a + b, ok + ok, seenA + seenB + line("GET", "/"+id+"/smuggled", nil), both, wants, "saw what was not forwarded"},
		{"a stranger", a + b, ok + ok, seenA + seenB + line("GET", "/who", nil), both, wants, "saw what was not forwarded"},
		{"not seen", a + b, ok + ok, seenA, both, wants, "did not see"},
		{"another body", a + b, ok + ok, seenA + line("POST", "/"+id+"/1", []byte("hellO")), both, wants, "did not see"},
		{"another order", a + b, ok + ok, seenB + seenA, both, wants, "not in this order"},
		{"declined after it was seen", a + b, declined + ok, seenA + seenB, both, wants, ""},
		{"declined, and seen twice", a + b, declined + ok, seenA + seenA + seenB, both, wants, "did not see"},
		{"not counted", a + b, ok + ok, seenA + seenB, both[:1], wants, "the wire has 2"},
		{"counted twice", a + b, ok + ok, seenA + seenB, append(both, via("/1")), wants, "the wire has 2"},
		{"an answer too many", a + b, ok + ok + ok, seenA + seenB, both, wants, "more answers"},
		{"not what was meant", a + b, ok + ok, seenA + seenB, both, []want{wants[0], {method: "POST", body: "hell"}}, "was meant as"},
		{"more than was meant", a + b, ok + ok, seenA + seenB, both, wants[:1], "were meant"},
		{"unreadable", a + "GET  / HTTP/1.1\r\n\r\n", ok, seenA, both[:1], nil, "net/http can't read"},
		{"both lengths", strings.Replace(b, "\r\n\r\n", "\r\nTransfer-Encoding: x\r\n\r\n", 1), "", "", nil, nil, "net/http can't read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := &origin{name: "go", records: filepath.Join(t.TempDir(), "records")}
			if err := os.WriteFile(o.records, []byte(tc.records), 0o600); err != nil {
				t.Fatal(err)
			}
			c := &tapped{}
			_, _ = fmt.Fprint(tap{c, &c.asked}, tc.asked)
			_, _ = fmt.Fprint(tap{c, &c.answers}, tc.answers)
			v := compare(o, []*blob{{id: id, kind: "test", want: tc.want}}, &tee{conns: []*tapped{c}}, tc.counted)
			got := strings.Join(v.mismatches, "\n")
			if tc.mismatch == "" && got != "" || !strings.Contains(got, tc.mismatch) {
				t.Errorf("mismatches %q, want %q", got, tc.mismatch)
			}
		})
	}
}

// TestGenerate: the same seed makes the same messages, so a mismatch can be looked at again, and every message has its name.
func TestGenerate(t *testing.T) {
	one, two := generate(5, 2000, "go"), generate(5, 2000, "go")
	kinds := map[string]int{}
	for i := range one {
		if !bytes.Equal(one[i].raw, two[i].raw) || fmt.Sprint(one[i].h2) != fmt.Sprint(two[i].h2) {
			t.Fatalf("message %d differs", i)
		}
		if idPattern.FindString(one[i].id) != one[i].id {
			t.Fatalf("%q is not a name", one[i].id)
		}
		kinds[one[i].kind]++
	}
	if len(kinds) < 20 {
		t.Errorf("only %d kinds of messages: %v", len(kinds), kinds)
	}
}

func TestDecoded(t *testing.T) {
	for in, want := range map[string]string{"/a%22b?k=%&v": "/a\"b?k=%&v", "/a\"b?k=%&v": "/a\"b?k=%&v", "/%2": "/%2", "/%2f%2F": "///"} {
		if _, got := decoded("GET", in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
