package e2e

import "testing"

// TestBaseline deploys the applications without the mesh: what doesn't work here is not the mesh's fault.
func TestBaseline(t *testing.T) {
	b := up(t)
	for _, app := range Apps {
		t.Run(app.Name, func(t *testing.T) {
			t.Parallel()
			b.app(t, app, "plain-"+app.Name, "")
			from := b.outside(t)
			eventually(t, func() error {
				return app.Check(t.Context(), b.c, "plain-"+app.Name, false, func(url string, times int) ([]string, error) { return from.get(t.Context(), url, times) })
			})
		})
	}
}

// app deploys an application in a namespace of its own.
func (b *bed) app(t *testing.T, app App, namespace, labels string) {
	t.Helper()
	if len(app.Volumes) > 0 && b.c.External && kubectl(t, b.c, "", "get", "storageclasses", "-o", "name") == "" {
		t.Skip("the application needs a persistent volume, and this cluster has no storage class")
	}
	b.namespace(t, namespace, labels, "")
	app.Remove(b.c, namespace, "--timeout=300s") // what a test that was killed left
	t.Cleanup(func() { app.Remove(b.c, namespace, "--wait=false") })
	if err := app.Deploy(t.Context(), b.c, namespace); err != nil {
		t.Fatal(err)
	}
}
