// Package local translates Malha's own kinds into the model (malha.dev/v1alpha1): Workload, a program that `malha up` starts, or
// one that already listens somewhere, with a proxy beside it; and RateLimit.
//
// It is pure: one checked object in, model values out, mistakes into the manifest.Report. It knows no files: a relative
// directory is resolved against the path of the file as the Origin has it.
package local

import (
	"encoding/json"
	"net/netip"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Group and Version are those of Workload.
const (
	Group   = "malha.dev"
	Version = "v1alpha1"
)

// dialect is what the objects of one configuration have to tell each other.
type dialect struct {
	limited []limited
}

// New returns the dialect for one configuration.
func New() manifest.Dialect {
	d := &dialect{}
	return manifest.Dialect{
		Kinds: []manifest.Kind{
			{
				Group: Group, Kind: "Workload", Versions: []string{Version}, Type: workloadType, Translate: workload,
				Fields: manifest.Work("", "serviceAccount", "ports", "run", "address", "weight", "readinessProbe"),
			},
			{
				Group: Group, Kind: "RateLimit", Versions: []string{Version}, Type: limitType, Translate: rateLimit,
				Fields: manifest.Work("", "selector", "port", "rules"),
			},
		},
		Annotate: d.annotate,
		Finish:   d.finish,
	}
}

var workloadType = sync.OnceValue(func() *manifest.Type {
	return manifest.FromGo(reflect.TypeFor[workloadSpec](), map[reflect.Type]*manifest.Type{reflect.TypeFor[portRef](): manifest.TypeIntOrString})
})

// workloadSpec is the spec of a Workload.
type workloadSpec struct {
	ServiceAccount string         `json:"serviceAccount"` // default: "default"
	Ports          []workloadPort `json:"ports"`
	Run            *run           `json:"run"`     // started by malha up
	Address        string         `json:"address"` // IP where it listens already
	Weight         uint32         `json:"weight"`  // of its endpoints; 0 means 1
	ReadinessProbe *probe         `json:"readinessProbe"`
}

type workloadPort struct {
	Name        string `json:"name"`
	Port        int32  `json:"port"`
	AppProtocol string `json:"appProtocol"`
}

type run struct {
	Command []string `json:"command"` // $(PORT_<NAME>), $(PORT) for the first port
	Env     []env    `json:"env"`
	Dir     string   `json:"dir"` // relative to the file
}

type env struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func workload(o *manifest.Object, spec []byte, out *model.Config, r *manifest.Report) {
	at := o.Spec()
	var in workloadSpec
	if err := json.Unmarshal(spec, &in); err != nil {
		r.Error(manifest.CodeInternal, at, "please report this", "cannot decode the spec: %v", err)
		return
	}
	account := in.ServiceAccount
	if account == "" {
		account = "default"
	}
	if !manifest.IsSubdomain(account) {
		r.Error(manifest.CodeBadValue, at.Field("serviceAccount"), "lower-case letters, digits, '-' and '.'", "%q cannot be the name of a service account", account)
	}
	w := model.Workload{
		Meta:     o.Meta(),
		Identity: ident.Identity{TrustDomain: ident.DefaultTrustDomain, Namespace: o.Name.Namespace, ServiceAccount: account},
		Ports:    ports(in.Ports, at, r),
	}
	w.Locality = locality(o.Labels)
	w.Weight = in.Weight
	if in.Weight > maxWeight {
		r.Error(manifest.CodeOutOfRange, at.Field("weight"), "", "weight %d is out of range: from 1 to %d", in.Weight, maxWeight)
	}
	if in.ReadinessProbe != nil {
		w.Check, w.CheckPort = check(in.ReadinessProbe, w.Ports, at.Field("readinessProbe"), r)
	}
	switch {
	case in.Run != nil && in.Address != "":
		r.Error(manifest.CodeWorkloadRun, at.Field("address"), "keep run to have it started, or address when it runs already", "`run` and `address` exclude each other")
	case in.Run == nil && in.Address == "":
		r.Error(manifest.CodeWorkloadRun, at, "add run: {command: [...]}, or address: 127.0.0.1 when it runs already", "the Workload has neither `run` nor `address`")
	case in.Run != nil:
		w.Run = program(in, at.Field("run"), o, r)
	default:
		addr, err := netip.ParseAddr(in.Address)
		if err != nil || addr.IsUnspecified() || addr.IsMulticast() {
			r.Error(manifest.CodeBadValue, at.Field("address"), "write an IP address, such as 127.0.0.1", "%q is not an address that a program can be reached at", in.Address)
		}
		w.Address = in.Address
	}
	out.Workloads = append(out.Workloads, w)
}

func ports(in []workloadPort, at manifest.Cursor, r *manifest.Report) []model.WorkloadPort {
	names, numbers := map[string]bool{}, map[int32]bool{}
	out := make([]model.WorkloadPort, 0, len(in))
	for i, p := range in {
		here := at.Field("ports").Index(i)
		switch {
		case p.Port < 1 || p.Port > 65535:
			if !here.Field("port").Set() {
				r.Error(manifest.CodeRequired, here, "add port: …", "a port needs its number")
			} else {
				r.Error(manifest.CodeOutOfRange, here.Field("port"), "", "port %d is out of range: from 1 to 65535", p.Port)
			}
		case numbers[p.Port]:
			r.Error(manifest.CodePorts, here.Field("port"), "keep one of them", "port %d stands twice", p.Port)
		case p.Name == "" && len(in) > 1:
			r.Error(manifest.CodePorts, here, "add name: …", "with several ports each needs a name")
		case p.Name != "" && !manifest.IsDNSLabel(p.Name):
			r.Error(manifest.CodePorts, here.Field("name"), "lower-case letters, digits and '-'", "%q is not a valid port name", p.Name)
		case p.Name != "" && names[p.Name]:
			r.Error(manifest.CodePorts, here.Field("name"), "keep one of them", "port name %q stands twice", p.Name)
		}
		manifest.AppProtocol(here.Field("appProtocol"), p.AppProtocol, r)
		names[p.Name], numbers[p.Port] = true, true
		out = append(out, model.WorkloadPort{
			Name: p.Name, Port: int(p.Port), Origin: here.Origin(),
			Protocol: ident.PortProtocol(p.AppProtocol, p.Name, "TCP", int(p.Port)),
		})
	}
	return out
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func program(in workloadSpec, at manifest.Cursor, o *manifest.Object, r *manifest.Report) *model.Run {
	out := &model.Run{Command: in.Run.Command, Dir: in.Run.Dir, Origin: at.Origin()}
	if len(in.Run.Command) == 0 || in.Run.Command[0] == "" {
		r.Error(manifest.CodeRequired, at, `add command: [./program, --listen, "127.0.0.1:$(PORT)"]`, "`run` has no command")
	}
	known := portVariables(in)
	for i, word := range in.Run.Command {
		variables(word, known, at.Field("command").Index(i), r)
	}
	seen := map[string]bool{}
	for i, e := range in.Run.Env {
		here := at.Field("env").Index(i)
		switch {
		case !envName.MatchString(e.Name):
			r.Error(manifest.CodeBadValue, here, "letters, digits and '_'", "%q cannot be the name of an environment variable", e.Name)
		case seen[e.Name]:
			r.Error(manifest.CodeDuplicateKey, here.Field("name"), "keep one of them", "environment variable %s stands twice", e.Name)
		case strings.ContainsRune(e.Value, 0):
			r.Error(manifest.CodeBadValue, here.Field("value"), "", "the value has a NUL byte")
		}
		seen[e.Name] = true
		variables(e.Value, known, here.Field("value"), r)
		out.Env = append(out.Env, model.EnvVar{Name: e.Name, Value: e.Value})
	}
	if !path.IsAbs(out.Dir) {
		out.Dir = path.Join(path.Dir(o.Origin.File), out.Dir)
	}
	return out
}

// portVariables returns the names of the variables for ports that the program's command and environment may use: PORT
// for the first port, PORT_<NUMBER>, and PORT_<NAME> in upper case with '_' for '-'; and those of its own environment.
func portVariables(in workloadSpec) []string {
	var out []string
	for i, p := range in.Ports {
		if i == 0 {
			out = append(out, "PORT")
		}
		if p.Name != "" {
			out = append(out, "PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_")))
		}
		out = append(out, "PORT_"+strconv.Itoa(int(p.Port)))
	}
	for _, e := range in.Run.Env {
		if strings.HasPrefix(e.Name, "PORT") {
			out = append(out, e.Name)
		}
	}
	return out
}

var reference = regexp.MustCompile(`\$\(([^()]*)\)`)

// variables checks the references $(PORT…) in s against the ports that there are. Other names are the supervisor's to
// know; $$( is a literal "$(" as in Kubernetes.
func variables(s string, known []string, at manifest.Cursor, r *manifest.Report) {
	for _, m := range reference.FindAllStringSubmatchIndex(s, -1) {
		before := strings.TrimRight(s[:m[0]], "$")
		if (m[0]-len(before))%2 == 1 { // "$$" is a literal "$"
			continue
		}
		name := s[m[2]:m[3]]
		if strings.HasPrefix(strings.ToUpper(name), "PORT") && !slices.Contains(known, name) {
			r.Error(manifest.CodePortVariable, at, manifest.DidYouMean(name, known), "$(%s) names no port of this Workload", name)
		}
	}
}
