package gateway_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
)

// BenchmarkTranslate translates HTTPRoutes of one gateway, with the checks of the CRD: its time must grow with their number
// and not with its square.
func BenchmarkTranslate(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		var text strings.Builder
		text.WriteString("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {a: b}, ports: [{name: http, port: 80}]}\n---\n" +
			"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw}\nspec: {gatewayClassName: malha, listeners: [{name: http, port: 80, protocol: HTTP}]}\n")
		for i := range n {
			fmt.Fprintf(&text, "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r%d}\nspec: {parentRefs: [{name: gw}], hostnames: [r%d.example.com], "+
				"rules: [{matches: [{path: {value: /a}}, {headers: [{name: x, value: y}]}], backendRefs: [{name: web, port: 80}]}]}\n", i, i)
		}
		objs, ds := config.Parse("a.yaml", []byte(text.String()))
		if len(ds) > 0 {
			b.Fatal(ds)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				config.Translate(objs)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/route")
		})
	}
}
