package probe

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRoundTrip(t *testing.T) {
	s := Set{
		Path("app", Ready):   {HTTP: &HTTP{Port: 80, Path: "/a?b=c", TLS: true, Headers: []Header{{"X", "$(Y)"}}}, Seconds: 3},
		Path("app", Live):    {TCP: &TCP{Port: 5432}},
		Path("app", Start):   {GRPC: &GRPC{Port: 9000, Service: "s"}},
		Path("app", PreStop): {HTTP: &HTTP{Port: 80, Path: "/bye"}},
		Path("b", PostStart): {HTTP: &HTTP{Port: 80, Path: "/hi"}},
	}
	v, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(v)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, got); d != "" {
		t.Error(d)
	}
	if none, err := Decode(""); none != nil || err != nil {
		t.Errorf("nothing is %v, %v", none, err)
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct{ value, want string }{
		{`{`, "unexpected"},
		{`{"/app-health/a/livez":{"exec":{}}}`, "unknown field"},
		{`{"/app-health/a/livez":{}}`, "want one of"},
		{`{"/app-health/a/livez":{"tcp":{"port":1},"http":{"port":1}}}`, "want one of"},
		{`{"/app-health/a/livez":{"tcp":{"port":0}}}`, "not from 1 to 65535"},
		{`{"/app-health/a/livez":{"http":{"port":1,"path":"/a b"}}}`, "white space"},
		{`{"/app-health/a/livez":{"http":{"port":1},"seconds":-1}}`, "less than none"},
		{`{"/quitquitquit":{"tcp":{"port":1}}}`, "is below neither"},
	} {
		if _, err := Decode(tc.value); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.value, err, tc.want)
		}
	}
}
