package manifest_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/config/manifest"
)

// TestValuesAreReadAsTextIs compares an object that came as text with the same one that came as values.
func TestValuesAreReadAsTextIs(t *testing.T) {
	const text = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"shop","labels":{"a":"1"},"generation":3,
"creationTimestamp":"2026-01-02T03:04:05Z"},"spec":{"ports":[{"port":80,"name":"http"}],"selector":{"a":"1"},"publishNotReadyAddresses":true,"clusterIP":null,"x":1.5}}`
	fromText, ds := manifest.Parse("f", []byte(text))
	if len(ds) > 0 || len(fromText) != 1 {
		t.Fatal(ds)
	}
	var value map[string]any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	got, ds := manifest.FromValue(manifest.Kubernetes, value)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	for path, c := range map[string][2]manifest.Cursor{
		"port": {fromText[0].Spec().Field("ports").Index(0).Field("port"), got.Spec().Field("ports").Index(0).Field("port")},
		"x":    {fromText[0].Spec().Field("x"), got.Spec().Field("x")},
		"ip":   {fromText[0].Spec().Field("clusterIP"), got.Spec().Field("clusterIP")},
		"bool": {fromText[0].Spec().Field("publishNotReadyAddresses"), got.Spec().Field("publishNotReadyAddresses")},
	} {
		if c[0].Set() != c[1].Set() {
			t.Errorf("%s: set %t as text, %t as a value", path, c[0].Set(), c[1].Set())
		}
	}
	if got.Origin.File != "kubernetes" || got.Origin.Line != 0 || got.Origin.Name != "web" {
		t.Errorf("origin %+v", got.Origin)
	}
	if diff := cmp.Diff(fromText[0].Meta().Labels, got.Meta().Labels); diff != "" || !got.Created.Equal(fromText[0].Created) || got.Generation != 3 {
		t.Errorf("metadata: %s %v %d", diff, got.Created, got.Generation)
	}
	if !got.Same(&got) || !fromText[0].Same(&fromText[0]) {
		t.Error("an object is not the same as itself")
	}
	value["spec"].(map[string]any)["x"] = 2.0
	if other, _ := manifest.FromValue(manifest.Kubernetes, value); other.Same(&got) {
		t.Error("a change goes unnoticed")
	}
	if _, ds := manifest.FromValue(manifest.Kubernetes, map[string]any{"kind": "Service"}); len(ds) == 0 {
		t.Error("an object without apiVersion is read")
	}
}
