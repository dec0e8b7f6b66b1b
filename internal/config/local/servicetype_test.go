package local_test

import (
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
)

func TestServiceType(t *testing.T) {
	for _, c := range []struct{ object, say string }{
		{"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, annotations: {malha.dev/service-type: ClusterIP}}\nspec: {gatewayClassName: malha, listeners: [{name: a, port: 80, protocol: HTTP}]}\n", ""},
		{"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a, annotations: {malha.dev/service-type: NodPort}}\nspec: {gatewayClassName: malha, listeners: [{name: a, port: 80, protocol: HTTP}]}\n", "did you mean `NodePort`?"},
		{"apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {malha.dev/service-type: NodePort}}\nspec: {ports: [{port: 80}]}\n", "means nothing on a Service"},
	} {
		objs, ds := config.Parse("a.yaml", []byte(c.object))
		_, more := config.Translate(objs)
		var found []string
		for _, d := range append(ds, more...) {
			if d.Code == "MALHA0308" {
				found = append(found, d.String())
			}
		}
		if got := strings.Join(found, "\n"); c.say == "" && got != "" || !strings.Contains(got, c.say) {
			t.Errorf("want %q in %q", c.say, got)
		}
	}
}
