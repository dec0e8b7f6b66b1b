// Package gateway translates the Gateway API (gateway.networking.k8s.io: GatewayClass, Gateway, ListenerSet, HTTPRoute, GRPCRoute,
// TLSRoute, TCPRoute, ReferenceGrant, BackendTLSPolicy) and Linkerd's HTTPRoute (policy.linkerd.io), which has its shape, into the
// model.
//
// It is pure. Each object is checked against its CRD when it is read (schema/); what it means depends on others (which
// listeners a route attaches to, which Services and Secrets exist, what a grant permits), so everything is translated in
// finish, once all objects are known. What does not resolve fails closed, is reported, and stands in a model.Status.
// The meaning is that of Gateway API v1.6 as its API documents have it, for gateways and for the mesh (GAMMA: parents that are
// Services).
package gateway

import (
	"encoding/json"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

const (
	group        = v1.GroupName
	linkerdGroup = "policy.linkerd.io"

	// ControllerName is what a GatewayClass of ours names.
	ControllerName = "malha.dev/gateway-controller"
	// ClassName is the class that exists without being written down.
	ClassName = "malha"
)

// dialect is what was read, for finish.
type dialect struct {
	classes  []object[v1.GatewayClassSpec]
	gateways []object[v1.GatewaySpec]
	sets     []object[v1.ListenerSetSpec]
	routes   []*route
	grants   []object[v1.ReferenceGrantSpec]
	policies []object[v1.BackendTLSPolicySpec]
	maps     []object[corev1.ConfigMap]
}

// object is an object that was read.
type object[S any] struct {
	*manifest.Object
	spec    S
	refused bool // it asks for something that Malha refuses, which was reported
}

// New makes the dialect for one configuration.
func New() manifest.Dialect {
	d := &dialect{}
	return manifest.Dialect{Kinds: d.kinds(), Finish: d.finish}
}

func (d *dialect) kinds() []manifest.Kind {
	const proof = "internal/config/gateway TestGolden"
	beta, alpha := []string{"v1", "v1beta1"}, []string{"v1", "v1alpha2"}
	all := []manifest.Kind{
		{Group: group, Kind: "GatewayClass", Versions: beta, Type: typeOf[v1.GatewayClassSpec](), Fields: classFields, Proof: proof, Translate: keep(&d.classes)},
		{Group: group, Kind: "Gateway", Versions: beta, Type: typeOf[v1.GatewaySpec](), Fields: gatewayFields, Proof: proof, Translate: keep(&d.gateways)},
		{Group: group, Kind: "ListenerSet", Versions: []string{"v1"}, Type: typeOf[v1.ListenerSetSpec](), Fields: listenerSetFields, Proof: proof, Translate: keep(&d.sets)},
		{Group: group, Kind: "HTTPRoute", Versions: beta, Type: typeOf[v1.HTTPRouteSpec](), Fields: httpRouteFields, Proof: proof, Translate: d.httpRoute},
		{Group: group, Kind: "GRPCRoute", Versions: alpha, Type: typeOf[v1.GRPCRouteSpec](), Fields: grpcRouteFields, Proof: proof, Translate: d.grpcRoute},
		{Group: group, Kind: "TLSRoute", Versions: []string{"v1", "v1alpha3", "v1alpha2"}, Type: typeOf[v1.TLSRouteSpec](), Fields: tlsRouteFields, Proof: proof, Translate: d.tlsRoute},
		{Group: group, Kind: "TCPRoute", Versions: alpha, Type: typeOf[v1.TCPRouteSpec](), Fields: tcpRouteFields, Proof: proof, Translate: d.tcpRoute},
		{Group: group, Kind: "ReferenceGrant", Versions: []string{"v1", "v1beta1", "v1alpha2"}, Type: typeOf[v1.ReferenceGrantSpec](), Fields: grantFields, Proof: proof, Translate: keep(&d.grants)},
		{Group: group, Kind: "BackendTLSPolicy", Versions: []string{"v1", "v1alpha3"}, Type: typeOf[v1.BackendTLSPolicySpec](), Fields: backendTLSFields, Proof: proof, Translate: keep(&d.policies)},
		{Group: linkerdGroup, Kind: "HTTPRoute", Versions: []string{"v1beta3", "v1beta2", "v1beta1", "v1alpha1"}, Type: typeOf[v1.HTTPRouteSpec](), Fields: linkerdRouteFields, Proof: proof, Translate: d.httpRoute},
		{Kind: "ConfigMap", Versions: []string{"v1"}, Bare: true, Type: typeOf[configMap](), Fields: configMapFields, Proof: proof, Translate: d.configMap},
	}
	for i := range all {
		all[i].KeepsBroken = true // what is wrong stands in statuses
		if slices.Contains(schemaKinds, all[i].Kind) {
			all[i].Complete = complete(all[i].Kind)
		}
	}
	return all
}

func typeOf[T any]() func() *manifest.Type {
	return sync.OnceValue(func() *manifest.Type { return manifest.FromGo(reflect.TypeFor[T](), nil) })
}

// keep reads an object and keeps it for finish.
func keep[S any](list *[]object[S]) func(*manifest.Object, []byte, *model.Config, *manifest.Report) {
	return func(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
		kept := object[S]{Object: o, refused: r.Broken(o)}
		if decode(o, spec, &kept.spec, r) {
			*list = append(*list, kept)
		}
	}
}

// configMap is the part of a ConfigMap that holds its values: those of Gateways and BackendTLSPolicies hold authorities.
type configMap struct {
	Data       map[string]string `json:"data"`
	BinaryData map[string][]byte `json:"binaryData"`
	Immutable  bool              `json:"immutable"`
}

func (d *dialect) configMap(o *manifest.Object, spec []byte, _ *model.Config, r *manifest.Report) {
	if r.Broken(o) {
		return
	}
	kept := object[corev1.ConfigMap]{Object: o}
	if err := json.Unmarshal(spec, &kept.spec); err != nil {
		internal(o, r, err)
		return
	}
	d.maps = append(d.maps, kept)
}

// older orders objects as every conflict between them is decided: the older one, then the first by namespace and name
// (Gateway API "Conflicts").
func older(aCreated time.Time, aName ident.Name, bCreated time.Time, bName ident.Name) int {
	if c := aCreated.Compare(bCreated); c != 0 {
		return c
	}
	return aName.Compare(bName)
}
