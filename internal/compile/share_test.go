package compile

import (
	"reflect"
	"slices"
	"testing"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// TestSharesConnections: limits that count HTTP/1.1 connections keep requests on them, unless the rule says otherwise.
func TestSharesConnections(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		name     string
		protocol ident.Protocol
		traffic  *model.TrafficPolicy
		want     bool
	}{
		{"http", ident.HTTP, nil, true},
		{"grpc has HTTP/2 of its own", ident.GRPC, nil, false},
		{"detected protocols stay what they are", ident.Detect, nil, false},
		{"tcp", ident.TCP, nil, false},
		{"limits of requests in flight", ident.HTTP, &model.TrafficPolicy{Limits: &plan.Limits{MaxRequests: 5}}, true},
		{"http1MaxPendingRequests", ident.HTTP, &model.TrafficPolicy{Limits: &plan.Limits{MaxPendingRequests: 1}}, false},
		{"maxConnections", ident.HTTP, &model.TrafficPolicy{Limits: &plan.Limits{MaxConnections: 1}}, false},
		{"maxRequestsPerConnection", ident.HTTP, &model.TrafficPolicy{Limits: &plan.Limits{MaxRequestsPerConnection: 1}}, false},
		{"UPGRADE", ident.HTTP, &model.TrafficPolicy{Limits: &plan.Limits{MaxConnections: 1}, HTTP2: &yes}, true},
		{"DO_NOT_UPGRADE", ident.HTTP, &model.TrafficPolicy{HTTP2: &no}, false},
	} {
		s := &model.ScopedService{Service: &model.Service{}}
		if c.traffic != nil {
			s.Policy = &model.DestinationPolicy{Traffic: c.traffic}
		}
		if got := sharesConnections(s, &model.ServicePort{Port: 80, Protocol: c.protocol}, nil); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestHear: a routing that differs in a field that decides about a virtual host is heard to differ. The fields that scope has
// decided already, and those of other protocols, are not listened to.
func TestHear(t *testing.T) {
	deaf := []string{"Labels", "Created", "Gateways", "TCP", "TLS", "ExportTo", "Delegate", "Name"}
	var fields func(v reflect.Value, was *model.Routing)
	fields = func(v reflect.Value, was *model.Routing) {
		for i := range v.NumField() {
			f, name := v.Field(i), v.Type().Field(i).Name
			if name == "Meta" {
				fields(f, was)
				continue
			}
			before := hear(was)
			switch f.Kind() {
			case reflect.Slice:
				f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			case reflect.Bool:
				f.SetBool(true)
			case reflect.Int:
				f.SetInt(7)
			case reflect.Struct:
				if o, ok := f.Addr().Interface().(*ident.Origin); ok {
					o.Name = "other"
				}
			}
			if heard := hear(was) != before; heard == slices.Contains(deaf, name) {
				t.Errorf("a change of %s is heard: %v", name, heard)
			}
		}
	}
	var r model.Routing
	fields(reflect.ValueOf(&r).Elem(), &r)
}
