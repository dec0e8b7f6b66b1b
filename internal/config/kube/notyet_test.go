package kube_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	discoveryfake "k8s.io/client-go/discovery/fake"
	dynamicfake "k8s.io/client-go/dynamic/fake"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
)

// TestKindsThatAreNotYet: an object of a kind that Malha knows by name alone is not passed over in silence, in whichever version
// it is served.
func TestKindsThatAreNotYet(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		c := newCluster(t)
		policies := schema.GroupVersionResource{Group: "policy.linkerd.io", Version: "v1beta1", Resource: "authorizationpolicies"}
		c.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{policies: "AuthorizationPolicyList"})
		var served []*metav1.APIResourceList
		for _, v := range []string{"v1alpha1", "v1beta1"} {
			served = append(served, &metav1.APIResourceList{GroupVersion: "policy.linkerd.io/" + v, APIResources: []metav1.APIResource{
				{Name: "authorizationpolicies", Kind: "AuthorizationPolicy", Namespaced: true, Verbs: metav1.Verbs{"list", "watch"}},
			}})
		}
		c.client.Discovery().(*discoveryfake.FakeDiscovery).Resources = served
		c.apply(policies, `{apiVersion: policy.linkerd.io/v1beta1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop}, spec: {}}`)
		c.run()
		defer c.end()
		r := c.whole()
		if len(r.Diagnostics) != 2 || r.Diagnostics[0].Code != manifest.CodeNotYetKind || r.Diagnostics[0].Origin.Name != "p" || r.Diagnostics[0].Severity != model.Error {
			t.Errorf("diagnostics %v", r.Diagnostics)
		}
		if d := r.Diagnostics[1]; d.Code != manifest.CodeUnguarded || d.Origin.Name != "p" { // it should refuse somebody something
			t.Errorf("diagnostics %v", r.Diagnostics)
		}
	})
}
