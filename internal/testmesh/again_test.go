package testmesh

import "testing"

// A workload that went and comes again runs its program where its new proxy looks for it.
func TestWorkloadComesAgain(t *testing.T) {
	t.Parallel()
	base := shop + program("web-3", "web")
	m := Start(t, base)
	m.Apply(shop)
	m.Apply(base)
	met := map[string]bool{}
	for n := 0; n < 12 || !met["web-3"] && n < 200; n++ {
		a := m.Get("client", "http://web/")
		if a.Status != 200 {
			t.Fatalf("%d: %s", a.Status, a.Body)
		}
		met[a.By] = true
	}
	if !met["web-3"] {
		t.Errorf("nothing came to it, but to %v", met)
	}
}
