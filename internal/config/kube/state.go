package kube

import (
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// state is what watchers heard, and what of it no Result says yet.
type state struct {
	trustDomain string

	mu       sync.Mutex
	objects  map[config.Key]*kept // that config translates
	services map[ident.Name]*service
	pods     map[ident.Name]*pod
	slices   map[ident.Name]*slice
	nodes    map[string]node

	refers map[ident.Name]map[ident.Name]bool // slices that refer to a pod
	names  map[string]map[ident.Name]bool     // slices with an address of which they don't say whose it is
	ips    map[string]map[ident.Name]bool     // pods with a sidecar at an address: one, but for the moment in which it is given on
	on     map[string]map[ident.Name]bool     // pods on a node

	foreign foreign            // among objects
	trouble []model.Diagnostic // with reading

	begun       bool // there was a first Result
	config      bool // a Result of everything is due
	dirtyPods   map[ident.Name]bool
	dirtySlices map[ident.Name]bool

	made   map[ident.Name]*running            // as the Results so far say
	groups map[ident.Name]model.EndpointGroup // as the Results so far say
}

// running is a workload and where it runs.
type running struct {
	workload model.Workload
	instance *model.Instance // nil: it has no address yet
}

func newState(trustDomain string) state {
	return state{
		trustDomain: trustDomain,
		objects:     map[config.Key]*kept{}, services: map[ident.Name]*service{}, pods: map[ident.Name]*pod{}, slices: map[ident.Name]*slice{},
		nodes: map[string]node{}, refers: map[ident.Name]map[ident.Name]bool{}, names: map[string]map[ident.Name]bool{}, ips: map[string]map[ident.Name]bool{}, on: map[string]map[ident.Name]bool{},
		dirtyPods: map[ident.Name]bool{}, dirtySlices: map[ident.Name]bool{},
		made: map[ident.Name]*running{}, groups: map[ident.Name]model.EndpointGroup{},
	}
}

func (st *state) touch(f func(*state)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	f(st)
}

// objectFeed keeps objects as they are, for config.
func objectFeed(apiVersion, kind string) feed {
	group := ""
	for i := range apiVersion {
		if apiVersion[i] == '/' {
			group = apiVersion[:i]
		}
	}
	return feed{
		convert: func(o metav1.Object) (any, error) {
			return convert(apiVersion, kind, o)
		},
		put: func(st *state, name ident.Name, v any) {
			k, _ := v.(*kept)
			st.putObject(config.Key{Group: group, Kind: kind, Name: name}, k)
		},
	}
}

func convert(apiVersion, kind string, o metav1.Object) (any, error) {
	obj, ok := o.(runtime.Object)
	if !ok {
		return nil, errNoObject
	}
	return read(apiVersion, kind, obj)
}

// putObject keeps an object, or with nil forgets it.
func (st *state) putObject(key config.Key, k *kept) {
	before := st.objects[key]
	switch {
	case k == nil && before == nil, k != nil && before != nil && before.same(k):
		return // only its status is another, most often
	case k == nil:
		delete(st.objects, key)
	default:
		st.objects[key] = k
	}
	st.config = true
}

// service is what is needed of a Service besides its meaning.
type service struct {
	kept     *kept
	selector map[string]string
	ports    []corev1.ServicePort
	also     []string        // addresses that its clusterIPs do not name: of load balancers, external ones
	family   corev1.IPFamily // of its first address
}

func readService(o metav1.Object) (any, error) {
	in, ok := o.(*corev1.Service)
	if !ok {
		return nil, errNoObject
	}
	k, err := read("v1", "Service", in)
	if err != nil {
		return nil, err
	}
	out := &service{kept: k, selector: in.Spec.Selector, ports: in.Spec.Ports, also: slices.Clone(in.Spec.ExternalIPs)}
	for _, ingress := range in.Status.LoadBalancer.Ingress {
		if ingress.IP != "" && !slices.Contains(out.also, ingress.IP) {
			out.also = append(out.also, ingress.IP)
		}
	}
	if len(in.Spec.IPFamilies) > 0 {
		out.family = in.Spec.IPFamilies[0]
	}
	return out, nil
}

func putService(st *state, name ident.Name, v any) {
	key := config.Key{Kind: "Service", Name: name}
	s, _ := v.(*service)
	if s == nil {
		delete(st.services, name)
		st.putObject(key, nil)
		return
	}
	before := st.services[name]
	st.services[name] = s
	st.putObject(key, s.kept)
	if before != nil && !slices.Equal(before.also, s.also) {
		st.config = true
	}
}

// node is what pods and endpoints have from where they are.
type node struct {
	locality string // "region/zone/subzone"
	hostname string // by which endpoints on one node are told (kubernetes.io/hostname)
	region   string
	zone     string
	subzone  string
}

func readNode(o metav1.Object) (any, error) {
	l := o.GetLabels()
	n := node{
		region: l[corev1.LabelTopologyRegion], zone: l[corev1.LabelTopologyZone], subzone: l[plan.LabelSubzone], hostname: l[corev1.LabelHostname],
	}
	if n.hostname == "" {
		n.hostname = o.GetName()
	}
	n.locality = localityOf(n.region, n.zone, n.subzone)
	return n, nil
}

// localityOf is "region/zone/subzone" of which the end may be missing; an unknown region with a known zone stays empty.
func localityOf(region, zone, subzone string) string {
	switch {
	case subzone != "":
		return region + "/" + zone + "/" + subzone
	case zone != "":
		return region + "/" + zone
	}
	return region
}

func putNode(st *state, name ident.Name, v any) {
	n, ok := v.(node)
	before, had := st.nodes[name.Name]
	switch {
	case !ok:
		delete(st.nodes, name.Name)
	case had && before == n:
		return
	default:
		st.nodes[name.Name] = n
	}
	for p := range st.on[name.Name] {
		st.dirtyPods[p] = true
		st.dirtySlicesOf(p)
		if st.pods[p].role == gateway { // which no Delta says
			st.config = true
		}
	}
}

// dirtySlicesOf has the slices with endpoints of a pod be looked at again.
func (st *state) dirtySlicesOf(p ident.Name) {
	for s := range st.refers[p] {
		st.dirtySlices[s] = true
	}
	if v := st.pods[p]; v != nil {
		for _, ip := range v.addresses() {
			for s := range st.names[ip] {
				st.dirtySlices[s] = true
			}
		}
	}
}

// where returns what is known of a node.
func (st *state) where(name string) node {
	n, ok := st.nodes[name]
	if !ok {
		n.hostname = name
	}
	return n
}

func enter[A, B comparable](m map[A]map[B]bool, a A, b B) {
	if m[a] == nil {
		m[a] = map[B]bool{}
	}
	m[a][b] = true
}

func leave[A, B comparable](m map[A]map[B]bool, a A, b B) {
	delete(m[a], b)
	if len(m[a]) == 0 {
		delete(m, a)
	}
}

// delta returns what is new about pods and endpoints; nil: nothing. mu is held.
func (st *state) delta() *model.Delta {
	var d model.Delta
	for _, name := range sortedNames(st.dirtyPods) {
		before, now := st.made[name], st.run(st.pods[name])
		switch {
		case now == nil && before == nil:
			continue
		case now == nil:
			d.Ended, d.Unplaced = append(d.Ended, name), append(d.Unplaced, name)
			delete(st.made, name)
			continue
		case before == nil || !reflect.DeepEqual(before.workload, now.workload):
			d.Workloads = append(d.Workloads, now.workload)
		}
		switch had := before != nil && before.instance != nil; {
		case now.instance == nil && had:
			d.Unplaced = append(d.Unplaced, name)
		case now.instance != nil && (!had || !reflect.DeepEqual(before.instance, now.instance)):
			d.Instances = append(d.Instances, *now.instance)
		}
		st.made[name] = now
	}
	for _, name := range sortedNames(st.dirtySlices) {
		before, had := st.groups[name]
		now, ok := st.group(st.slices[name])
		switch {
		case !ok && had:
			d.Ungrouped = append(d.Ungrouped, name)
			delete(st.groups, name)
		case ok && (!had || !reflect.DeepEqual(before, now)):
			d.Groups = append(d.Groups, now)
			st.groups[name] = now
		}
	}
	clear(st.dirtyPods)
	clear(st.dirtySlices)
	if reflect.ValueOf(d).IsZero() {
		return nil
	}
	return &d
}

func sortedNames[V any](m map[ident.Name]V) []ident.Name {
	out := make([]ident.Name, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	slices.SortFunc(out, ident.Name.Compare)
	return out
}
