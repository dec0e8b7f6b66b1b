package control_test

import (
	"context"
	"testing"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
)

// refusing knows nobody.
type refusing struct{}

func (refusing) Authenticate(context.Context, string) (ca.Workload, error) {
	return ca.Workload{}, ca.ErrToken
}

func TestKnown(t *testing.T) {
	authority, err := ca.Open(ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := startWith(t, app, func(o *control.Options) { o.Authority, o.Authenticator = authority, refusing{} })
	if m.Roots() == nil || string(m.RootsPEM()) != string(authority.RootsPEM()) {
		t.Error("another authority signs")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	web := ident.Name{Namespace: "default", Name: "web"}
	n, ok := m.Known(ctx, web)
	if !ok || n.Identity.ServiceAccount != "web" || n.Workload.App != "web" {
		t.Errorf("%+v, %v", n, ok)
	}
	later := make(chan bool, 1)
	go func() {
		_, ok := m.Known(ctx, ident.Name{Namespace: "default", Name: "late"})
		later <- ok
	}()
	m.set(app + "---\napiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: late}\nspec: {ports: [{name: http, port: 82}], address: 127.0.0.1}\n")
	if !<-later {
		t.Error("one that came a moment later is not known")
	}
	gone, stop := context.WithCancel(ctx)
	stop()
	if _, ok := m.Known(gone, ident.Name{Namespace: "default", Name: "nobody"}); ok {
		t.Error("nobody is known")
	}
	if err := m.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if c := m.Counters(); c.Proxies == 0 {
		t.Errorf("counters: %+v", c)
	}
}
