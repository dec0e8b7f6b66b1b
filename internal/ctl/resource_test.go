package ctl

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/app/local"
	"github.com/malha-mesh/malha/internal/ident"
)

func TestParseResources(t *testing.T) {
	for args, want := range map[string]string{
		"vs a": "VirtualService[a]", "virtualservice/a": "VirtualService[a]", "VirtualServices a b": "VirtualService[a b]",
		"virtualservices.networking.istio.io a": "VirtualService[a]", "vs/a dr/b vs/c": "VirtualService[a c] DestinationRule[b]",
		"vs,dr": "VirtualService[] DestinationRule[]", "vs,dr a": "VirtualService[a] DestinationRule[a]", "vs prod/a": "VirtualService[prod/a]",
		"vs/prod/a": "VirtualService[prod/a]", "secrets": "Secret[]", "ing": "Ingress[]", "httproutes a": "HTTPRoute[a]", "cm": "ConfigMap[]",
		"gatewayclasses": "GatewayClass[]", "endpoints": "Endpoints[]", "peerauthentications.security.istio.io": "PeerAuthentication[]",
		"service": "Service[]", "svc": "Service[]", "authorizationpolicies": "AuthorizationPolicy[]", "gateways": "Gateway[]", "wl": "Workload[]",
		"se": "ServiceEntry[]", "workloadentries": "WorkloadEntry[]",
	} {
		resources, err := parseResources(strings.Fields(args))
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		got := make([]string, len(resources))
		for i, r := range resources {
			got[i] = fmt.Sprint(r.kind.kind, r.names)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s means %s, want %s", args, got, want)
		}
	}
	if all, err := parseResources([]string{"all"}); err != nil || len(all) != len(kinds()) {
		t.Errorf("all: %d kinds, %v", len(all), err)
	}
	seen := map[string]string{}
	for _, k := range kinds() {
		for _, word := range []string{k.plural, k.short, k.name()} {
			if word != "" && seen[word] != "" && seen[word] != k.kind {
				t.Errorf("%q means both %s and %s", word, seen[word], k.kind)
			}
			seen[word] = k.kind
		}
	}
}

// Kinds of one name in several groups are told apart as kubectl does.
func TestResourceGroups(t *testing.T) {
	for word, want := range map[string]string{
		"httproutes": "", "httproutes.gateway.networking.k8s.io": "gateway.networking.k8s.io", "httproute.policy": "policy.linkerd.io",
		"gw.networking.istio.io": "networking.istio.io", "gateways.gateway": "gateway.networking.k8s.io", "vs.v1beta1.networking.istio.io": "networking.istio.io",
	} {
		if r, err := parseKind(word); r.group != want || err != nil {
			t.Errorf("%s: group %q, %v; want %q", word, r.group, err, want)
		}
	}
	if _, err := parseKind("httproutes.example.com"); err == nil || !strings.Contains(err.Error(), "policy.linkerd.io") {
		t.Errorf("an unknown group: %v", err)
	}
}

func TestPick(t *testing.T) {
	object := func(kind, namespace, name string) local.Object {
		return local.Object{APIVersion: "networking.istio.io/v1", Kind: kind, Name: ident.Name{Namespace: namespace, Name: name}}
	}
	objects := []local.Object{
		object("VirtualService", "default", "reviews"), object("VirtualService", "default", "reviews-canary"), object("VirtualService", "prod", "shop"),
		object("DestinationRule", "default", "reviews"), object("Namespace", "default", "prod"),
	}
	for _, c := range []struct {
		args      string
		namespace string
		all       bool
		want      []string
		missing   string
	}{
		{"vs", "default", false, []string{"default/reviews", "default/reviews-canary"}, ""},
		{"vs", "default", true, []string{"default/reviews", "default/reviews-canary", "prod/shop"}, ""},
		{"vs reviews", "default", false, []string{"default/reviews"}, ""},
		{"vs prod/shop reviews", "default", false, []string{"prod/shop", "default/reviews"}, ""},
		{"vs shop", "default", true, []string{"prod/shop"}, ""},
		{"vs shop", "default", false, nil, `no VirtualService "shop" in namespace "default"; there is one in prod: write -n prod`},
		{"vs reviws", "default", false, nil, `in namespace "default"; did you mean reviews?`},
		{"vs nothing", "default", true, nil, "no VirtualService \"nothing\"; `malha get virtualservices -A` lists those there are"},
		{"vs reviews a/b/c", "default", false, []string{"default/reviews"}, "NAMESPACE/NAME"},
		{"vs.gateway reviews", "default", false, nil, ""},
		{"ns", "prod", false, []string{"default/prod"}, ""}, // which is in no namespace
	} {
		resources, err := parseResources(strings.Fields(c.args))
		if err != nil {
			continue // a group that has no such kind
		}
		found, errs := resources[0].pick(objects, c.namespace, c.all)
		var got []string
		for _, o := range found {
			got = append(got, o.Name.String())
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s -n %s (-want +got):\n%s", c.args, c.namespace, diff)
		}
		if text := fmt.Sprint(errs); c.missing == "" && len(errs) > 0 || !strings.Contains(text, c.missing) {
			t.Errorf("%s -n %s: %s, want %q", c.args, c.namespace, text, c.missing)
		}
	}
	if len(objects) != 5 || objects[4].Kind != "Namespace" {
		t.Error("the objects that were looked at changed")
	}
}

func TestObjectWordIsReadAgain(t *testing.T) {
	for _, o := range []local.Object{
		{APIVersion: "networking.istio.io/v1", Kind: "VirtualService", Name: ident.Name{Namespace: "default", Name: "a"}},
		{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway", Name: ident.Name{Namespace: "prod", Name: "a"}},
		{APIVersion: "v1", Kind: "Service", Name: ident.Name{Namespace: "prod", Name: "a"}},
		{APIVersion: "v1", Kind: "Namespace", Name: ident.Name{Namespace: "default", Name: "a"}},
	} {
		word := objectWord(&o, "default")
		resources, err := parseResources([]string{word})
		if err != nil {
			t.Errorf("%s: %v", word, err)
			continue
		}
		if found, _ := resources[0].pick([]local.Object{o}, "default", false); len(found) != 1 {
			t.Errorf("%s does not name %s %s", word, o.Kind, o.Name)
		}
	}
}

func TestObjectTable(t *testing.T) {
	objects := []local.Object{{APIVersion: "v1", Kind: "Service", Name: ident.Name{Namespace: "default", Name: "a"}, Labels: map[string]string{"app": "a"},
		Origin: ident.Origin{File: "/m/a.yaml", Line: 3}, YAML: "spec: {ports: [{name: http, port: 80}], selector: {app: a}}"}}
	resources, err := parseResources([]string{"svc"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f       getFlags
		several bool
		want    string
	}{
		{getFlags{}, false, "NAME  PORTS    SELECTOR  FROM\na     http:80  app=a     /m/a.yaml:3\n"},
		{getFlags{all: true}, true, "NAMESPACE  NAME       PORTS    SELECTOR  FROM\ndefault    service/a  http:80  app=a     /m/a.yaml:3\n"},
		{getFlags{noHeaders: true, out: objectFormat{choice{value: "wide"}}}, false, "a  http:80  app=a  /m/a.yaml:3  v1  app=a\n"},
	} {
		table, err := objectTable(nil, &resources[0], objects, &c.f, c.several)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		table.write(&got, false)
		if diff := cmp.Diff(c.want, got.String()); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.f, diff)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"reviews-v1", "reviews-v2", "reviews-v3", "reviews-v4", "details-v1"}
	for word, want := range map[string]string{
		"reviws-v1": "; did you mean reviews-v1?", "details": "; did you mean details-v1?",
		"reviews": "; did you mean reviews-v1, reviews-v2, reviews-v3, …?", "nothing": "", "": "",
	} {
		if got := didYouMean(word, slices.Clone(names)); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

// cobra reads the flags of a line to complete twice: a folder that is named once is one folder.
func TestCompletionOfProxies(t *testing.T) {
	for _, command := range []string{"compile", "explain"} {
		flag := map[string]string{"compile": "--proxy", "explain": "--from"}[command]
		out, errs, _ := malha(t, "", "__complete", command, "-f", "../../samples/bookinfo/mesh", flag, "rev")
		if !strings.HasPrefix(out, "reviews-v1\tsidecar\nreviews-v2\tsidecar\nreviews-v3\tsidecar\n") {
			t.Errorf("%s %s rev: %q %s", command, flag, out, errs)
		}
	}
}
