package linkerd

import (
	"slices"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// portSet is ports by number, range and name.
type portSet struct {
	ranges [][2]int // both ends in it
	names  []string
}

// parsePorts reads "25,8000-8010,db"; bad is the first word that is no port.
func parsePorts(s string) (set portSet, bad string) {
	for w := range words(s) {
		first, last, isRange := strings.Cut(w, "-")
		lo, err := strconv.Atoi(first)
		if err != nil {
			if !manifest.IsDNSLabel(w) {
				return set, w
			}
			set.names = append(set.names, w)
			continue
		}
		hi := lo
		if isRange {
			if hi, err = strconv.Atoi(last); err != nil {
				return set, w
			}
		}
		if lo < 1 || hi > 65535 || lo > hi {
			return set, w
		}
		set.ranges = append(set.ranges, [2]int{lo, hi})
	}
	return set, ""
}

func (s portSet) has(port int, name string) bool {
	return name != "" && slices.Contains(s.names, name) ||
		slices.ContainsFunc(s.ranges, func(r [2]int) bool { return r[0] <= port && port <= r[1] })
}

// ports reads an annotation of ports, and whether there is one without a mistake.
func (r reading) ports(key string) (portSet, bool) {
	v, ok := r.object.Annotations[key]
	if !ok {
		return portSet{}, false
	}
	set, bad := parsePorts(v)
	if bad != "" {
		r.bad(key, "write 3306,4000-4010", "%q is not a port", bad)
		return portSet{}, false
	}
	return set, true
}

// opaque makes ports opaque: those of Services for their clients, those of workloads on the way in. An object's annotation
// stands instead of its namespace's. A port that declares its appProtocol keeps it (Linkerd "Protocol detection").
func (d *dialect) opaque(out *model.Config) {
	type id struct {
		kind string
		name ident.Name
	}
	sets, objects := map[id]portSet{}, map[id]*manifest.Object{}
	for _, o := range d.annotated {
		set, ok := reading{&manifest.Report{}, o}.ports(opaquePorts) // its mistakes were reported
		if !ok {
			set = d.namespaces[o.Name.Namespace]
		}
		sets[id{o.Kind, o.Name}], objects[id{o.Kind, o.Name}] = set, o
	}
	declared := func(o *manifest.Object, i int) bool {
		return o.Spec().Field("ports").Index(i).Field("appProtocol").Set()
	}
	for i := range out.Services {
		s := &out.Services[i]
		key := id{"Service", s.Name}
		o := objects[key]
		if o == nil { // not a Kubernetes Service
			continue
		}
		ports := slices.Clone(s.Ports)
		for j := range ports {
			p := &ports[j]
			if (sets[key].has(p.Port, p.Name) || d.profiles[s.Host].has(p.Port, "")) && p.Protocol != ident.UDP && !declared(o, j) {
				p.Protocol = ident.TCP
			}
		}
		s.Ports = ports
	}
	for i := range out.Workloads {
		w := &out.Workloads[i]
		key := id{"Workload", w.Name}
		ports := slices.Clone(w.Ports)
		for j := range ports {
			if p := &ports[j]; objects[key] != nil && sets[key].has(p.Port, p.Name) && !declared(objects[key], j) {
				p.Protocol = ident.TCP
			}
		}
		w.Ports = ports
	}
}
