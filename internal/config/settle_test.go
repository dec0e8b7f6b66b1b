package config_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// objects makes objects of "name:word", where word is the version of one.
func objects(t *testing.T, kind, text string) []config.Object {
	t.Helper()
	var out []config.Object
	for i, f := range strings.Fields(text) {
		name, word, _ := strings.Cut(f, ":")
		objs, ds := config.Parse(fmt.Sprintf("%d.yaml", i), []byte("apiVersion: v1\nkind: "+kind+"\nmetadata: {name: "+name+"}\nspec: {word: "+word+"}\n"))
		if len(ds) > 0 {
			t.Fatal(ds)
		}
		out = append(out, objs...)
	}
	return out
}

func word(o *config.Object) string {
	var v struct{ Spec struct{ Word string } }
	if o.Node.Decode(&v) != nil {
		return "?"
	}
	return v.Spec.Word
}

func shown(objs []config.Object) string {
	var out []string
	for i := range objs {
		out = append(out, objs[i].Name.Name+":"+word(&objs[i]))
	}
	return strings.Join(out, " ")
}

// judge takes an object whose word is "bad" for broken, and one whose word is another object's name for loose unless that is
// there; "odd" is a warning; "lost" an error that is nobody's.
func judge(objs []config.Object) (broken, loose []model.Diagnostic) {
	say := func(list *[]model.Diagnostic, severity model.Severity, o *config.Object, message string) {
		*list = append(*list, model.Diagnostic{Severity: severity, Origin: o.Origin, Message: message})
	}
	for i := range objs {
		o := &objs[i]
		switch w := word(o); w {
		case "bad":
			say(&broken, model.Error, o, "bad")
		case "odd":
			say(&broken, model.Warning, o, "odd")
		case "lost":
			say(&broken, model.Error, &config.Object{}, "lost")
		case "v1", "v2":
		default:
			found := false
			for j := range objs {
				found = found || objs[j].Name.Name == w
			}
			if !found {
				say(&loose, model.Error, o, "no "+w)
			}
		}
		for j := range i {
			if config.KeyOf(&objs[j]) == config.KeyOf(o) {
				say(&broken, model.Error, o, "twice")
			}
		}
	}
	return broken, loose
}

func TestSettle(t *testing.T) {
	for _, c := range []struct{ what, kind, before, objs, sound, said string }{
		{"all is well", "Service", "a:v1", "a:v2 b:v1", "a:v2 b:v1", ""},
		{"the version before stands in", "Service", "a:v1 b:v1", "a:bad b:v2", "a:v1 b:v2",
			"Service a: bad; Service a: it keeps serving as it was before this change"},
		{"a new one is left out", "Service", "b:v1", "a:bad b:v2", "b:v2", "Service a: bad; Service a: it is not in force, and no version before it is"},
		{"what refuses somebody", "PeerAuthentication", "b:v1", "a:bad", "",
			"PeerAuthentication a: bad; PeerAuthentication a: it is not in force, and no version before it is: nobody is refused who would be by it"},
		{"nothing was in force", "Service", "-", "a:bad b:v1", "b:v1", "Service a: bad"},
		{"it was bad before, too", "Service", "a:bad", "a:bad", "", "Service a: bad; Service a: it is not in force, and no version before it is"},
		{"a new reference to nothing is taken back", "Service", "a:v1", "a:x", "a:v1", "Service a: no x; Service a: it keeps serving as it was before this change"},
		{"a new object that refers to nothing", "Service", "b:v1", "a:x b:v1", "b:v1", "Service a: no x; Service a: it is not in force, and no version before it is"},
		{"what it refers to is gone", "Service", "a:b b:v1", "a:b", "a:b", "Service a: no b"},
		{"what it refers to stands in", "Service", "b:v1", "a:b b:bad", "a:b b:v1", "Service b: bad; Service b: it keeps serving as it was before this change"},
		{"what it refers to is left out", "Service", "c:v1", "a:b b:bad c:a", "c:v1",
			"Service a: no b; Service a: it is not in force, and no version before it is; Service b: bad; Service b: it is not in force, and no version before it is; " +
				"Service c: no a; Service c: it keeps serving as it was before this change"},
		{"one stands twice", "Service", "a:v1", "a:v1 a:v1", "a:v1", "Service a: it keeps serving as it was before this change; Service a: twice"},
		{"a new one stands twice", "Service", "b:v1", "a:v1 a:v2", "", "Service a: it is not in force, and no version before it is; Service a: twice"},
		{"a warning", "Service", "a:v1", "a:odd", "a:odd", "Service a: odd"},
		{"a warning of the version before", "Service", "a:odd", "a:bad", "a:odd", "Service a: bad; Service a: it keeps serving as it was before this change"},
	} {
		before := objects(t, c.kind, strings.TrimPrefix(c.before, "-"))
		if c.before == "-" {
			before = nil
		}
		sound, ds, settled := config.Settle(objects(t, c.kind, c.objs), before, judge)
		var said []string
		for _, d := range ds {
			said = append(said, d.Origin.Kind+" "+d.Origin.Name+": "+d.Message)
		}
		if got := shown(sound); got != c.sound || !settled {
			t.Errorf("%s: %q, settled %t; want %q", c.what, got, settled, c.sound)
		}
		if diff := cmp.Diff(strings.Split(c.said, "; "), append(said, make([]string, max(0, 1-len(said)))...)); diff != "" {
			t.Errorf("%s:\n%s", c.what, diff)
		}
	}
	if _, ds, settled := config.Settle(objects(t, "Service", "a:lost"), nil, judge); settled || len(ds) != 1 {
		t.Errorf("an error of nobody: settled %t, %v", settled, ds)
	}
}

// TestSettleTellsGroupsApart: a Gateway of Istio and one of the Gateway API may have one name, and stand in one file.
func TestSettleTellsGroupsApart(t *testing.T) {
	text := "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {selector: {a: b}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n" +
		"---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {gatewayClassName: malha, listeners: [{name: http, port: PORT, protocol: HTTP}]}\n"
	translate := func(objs []config.Object) (broken, _ []model.Diagnostic) {
		_, broken = config.Translate(objs)
		return broken, nil
	}
	for port, want := range map[string]int{"80": 2, "800000": 1} {
		objs, _ := config.Parse("g.yaml", []byte(strings.Replace(text, "PORT", port, 1)))
		sound, ds, _ := config.Settle(objs, nil, translate)
		if len(sound) != want || sound[0].Group() != "networking.istio.io" {
			t.Errorf("port %s: %d objects, want %d: %v", port, len(sound), want, ds)
		}
	}
}

// TestSettleSettles changes objects at random: it always ends, and what it returns has no error but references of what did not
// change.
func TestSettleSettles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"v1", "v2", "bad", "odd", "a", "b", "c", "x"}
	folder := func() string {
		var out []string
		for range r.IntN(6) {
			out = append(out, string("abcd"[r.IntN(4)])+":"+words[r.IntN(len(words))])
		}
		return strings.Join(out, " ")
	}
	before := []config.Object{}
	for range 2000 {
		text := folder()
		sound, _, settled := config.Settle(objects(t, "Service", text), before, judge)
		if !settled {
			t.Fatalf("%s after %s: not settled", text, shown(before))
		}
		broken, loose := judge(sound)
		if model.HasErrors(broken) {
			t.Fatalf("%s after %s: %s has %v", text, shown(before), shown(sound), broken)
		}
		in := map[ident.Name]string{}
		for i := range before {
			in[before[i].Name] = word(&before[i])
		}
		for _, d := range loose {
			for i := range sound {
				if o := &sound[i]; o.Name.Name == d.Origin.Name && in[o.Name] != word(o) {
					t.Fatalf("%s after %s: %s has %s", text, shown(before), shown(sound), d)
				}
			}
		}
		before = sound
	}
}

func TestUnguarded(t *testing.T) {
	objs := append(objects(t, "AuthorizationPolicy", "a:bad b:v1"), objects(t, "Service", "c:bad")...)
	broken, _ := judge(objs)
	ds := config.Unguarded(objs, broken)
	if len(ds) != 1 || ds[0].Origin.Name != "a" || ds[0].Severity != model.Error {
		t.Errorf("%v", ds)
	}
	if ds := config.Unguarded(objs, nil); ds != nil {
		t.Errorf("without errors: %v", ds)
	}
}
