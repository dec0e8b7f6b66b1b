package local

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

const maxWeight = 1 << 16

// locality is "region/zone/subzone", without the empty parts at its end. The labels are those that Kubernetes puts on nodes; here
// they stand on the Workload.
func locality(labels map[string]string) string {
	return strings.TrimRight(labels[plan.LabelRegion]+"/"+labels[plan.LabelZone]+"/"+labels[plan.LabelSubzone], "/")
}

// portRef is the number or the name of a port.
type portRef struct {
	Number int
	Name   string
}

// UnmarshalJSON reads what the schema has checked.
func (p *portRef) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &p.Number) == nil {
		return nil
	}
	return json.Unmarshal(b, &p.Name)
}

// probe says how the program is asked whether it is ready, in the shape of a container's readinessProbe (Kubernetes "Probe").
type probe struct {
	HTTPGet          *httpGet   `json:"httpGet"`
	TCPSocket        *tcpSocket `json:"tcpSocket"`
	GRPC             *grpcProbe `json:"grpc"`
	PeriodSeconds    uint32     `json:"periodSeconds"`
	TimeoutSeconds   uint32     `json:"timeoutSeconds"`
	SuccessThreshold uint32     `json:"successThreshold"`
	FailureThreshold uint32     `json:"failureThreshold"`
}

type httpGet struct {
	Path string   `json:"path"`
	Port *portRef `json:"port"`
	Host string   `json:"host"`
}

type tcpSocket struct {
	Port *portRef `json:"port"`
}

type grpcProbe struct {
	Port    *portRef `json:"port"`
	Service string   `json:"service"`
}

// check translates a probe. The defaults are Kubernetes': every 10 s, 1 s, 3 failures, 1 success.
func check(in *probe, ports []model.WorkloadPort, at manifest.Cursor, r *manifest.Report) (*plan.HealthCheck, int) {
	out := &plan.HealthCheck{
		Interval: plan.Duration(10 * time.Second), Timeout: plan.Duration(time.Second), Unhealthy: 3, Healthy: 1,
	}
	set := 0
	var ref *portRef
	var here manifest.Cursor
	if p := in.HTTPGet; p != nil {
		set++
		ref, here = p.Port, at.Field("httpGet")
		out.Path, out.Host = p.Path, p.Host
		if out.Path == "" {
			out.Path = "/"
		}
		if !strings.HasPrefix(out.Path, "/") {
			r.Error(manifest.CodeBadValue, here.Field("path"), "begin it with /", "%q is not an absolute path", p.Path)
		}
	}
	if p := in.TCPSocket; p != nil {
		set++
		ref, here = p.Port, at.Field("tcpSocket")
	}
	if p := in.GRPC; p != nil {
		set++
		ref, here = p.Port, at.Field("grpc")
		out.GRPC, out.Host = true, p.Service
	}
	if set != 1 {
		r.Error(manifest.CodeExclusive, at, "write httpGet: {path: /healthz}, tcpSocket: {} or grpc: {}", "a probe is exactly one of `httpGet`, `tcpSocket` and `grpc`")
		return nil, 0
	}
	seconds := func(field string, n uint32, into *plan.Duration) {
		if n > 3600 {
			r.Error(manifest.CodeOutOfRange, at.Field(field), "", "%d s is out of range: from 1 to 3600", n)
		} else if n > 0 {
			*into = plan.Duration(time.Duration(n) * time.Second)
		}
	}
	seconds("periodSeconds", in.PeriodSeconds, &out.Interval)
	seconds("timeoutSeconds", in.TimeoutSeconds, &out.Timeout)
	if in.FailureThreshold > 0 {
		out.Unhealthy = in.FailureThreshold
	}
	if in.SuccessThreshold > 0 {
		out.Healthy = in.SuccessThreshold
	}
	return out, probePort(ref, ports, here, r)
}

// probePort returns the workload port that a probe asks: the one it names, else the first.
func probePort(ref *portRef, ports []model.WorkloadPort, at manifest.Cursor, r *manifest.Report) int {
	if ref == nil {
		if len(ports) == 0 {
			r.Error(manifest.CodePorts, at, "add ports: [{name: http, port: …}] to the Workload", "there is no port to ask")
			return 0
		}
		return ports[0].Port
	}
	var names []string
	for _, p := range ports {
		if ref.Name == "" && p.Port == ref.Number || ref.Name != "" && p.Name == ref.Name {
			return p.Port
		}
		names = append(names, p.Name)
	}
	r.Error(manifest.CodePorts, at.Field("port"), manifest.DidYouMean(ref.Name, names), "the Workload has no such port")
	return 0
}
