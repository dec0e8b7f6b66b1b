package config

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/internal/config/core"
	"github.com/malha-mesh/malha/internal/config/gateway"
	"github.com/malha-mesh/malha/internal/config/istio"
	"github.com/malha-mesh/malha/internal/config/linkerd"
	"github.com/malha-mesh/malha/internal/config/local"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/config/smi"
	"github.com/malha-mesh/malha/internal/ident"
)

// dialects makes every dialect anew, for one configuration. Those whose annotations change what others have made (linkerd, local)
// finish behind them.
func dialects() []manifest.Dialect {
	return []manifest.Dialect{
		core.New(),
		istio.Dialect(),
		gateway.New(),
		linkerd.New(),
		smi.New(),
		local.New(),
	}
}

// kinds is every kind that is translated.
func kinds() []manifest.Kind { return newTable().kinds }

// fineKinds are accepted and need no translation: a service account exists by being named.
var fineKinds = map[string]bool{"ServiceAccount": true}

// clusterGroups are the API groups of Kubernetes itself. What is in them is not wrong in a folder, there is only nobody
// on one machine to act on it.
var clusterGroups = map[string]bool{
	"": true, "apps": true, "batch": true, "autoscaling": true, "policy": true, "rbac.authorization.k8s.io": true,
	"networking.k8s.io": true, "apiextensions.k8s.io": true, "storage.k8s.io": true, "discovery.k8s.io": true,
	"admissionregistration.k8s.io": true, "scheduling.k8s.io": true, "coordination.k8s.io": true, "node.k8s.io": true,
	"apiregistration.k8s.io": true, "certificates.k8s.io": true, "kustomize.config.k8s.io": true,
	"monitoring.coreos.com": true,
}

// programKinds start programs on Kubernetes.
var programKinds = map[string]bool{
	"Deployment": true, "StatefulSet": true, "DaemonSet": true, "ReplicaSet": true, "Pod": true, "Job": true, "CronJob": true,
}

// coreKinds are the kinds of the core group, to tell a kind that is ignored from a word that is misspelt.
var coreKinds = []string{
	"ConfigMap", "Endpoints", "Event", "LimitRange", "Namespace", "Node", "PersistentVolume", "PersistentVolumeClaim", "Pod",
	"PodTemplate", "ReplicationController", "ResourceQuota", "Secret", "Service", "ServiceAccount",
}

// notYet are kinds of the dialects that Malha knows by name and does not translate.
var notYet = map[string]string{
	"security.istio.io":         "RequestAuthentication",
	"telemetry.istio.io":        "Telemetry",
	"extensions.istio.io":       "WasmPlugin TrafficExtension",
	"policy.linkerd.io":         "ServerAuthorization AuthorizationPolicy MeshTLSAuthentication NetworkAuthentication",
	"workload.linkerd.io":       "ExternalWorkload",
	"multicluster.linkerd.io":   "Link",
	"access.smi-spec.io":        "TrafficTarget IdentityBinding",
	"specs.smi-spec.io":         "UDPRoute",
	"gateway.networking.k8s.io": "UDPRoute",
}

// NotYet returns the kinds that Malha knows by name and does not translate, by group: their objects are reported, and not in force.
func NotYet() map[string][]string {
	out := map[string][]string{}
	for group, names := range notYet {
		out[group] = strings.Fields(names)
	}
	return out
}

// authorization is what to write instead of the authorization kinds of other dialects.
const authorization = "leave it out, and say who may do what with an AuthorizationPolicy (security.istio.io)"

// instead is what to write instead of a kind that is not translated.
var instead = map[string]string{
	"policy.linkerd.io/ServerAuthorization": authorization, "policy.linkerd.io/AuthorizationPolicy": authorization,
	"policy.linkerd.io/MeshTLSAuthentication": authorization, "policy.linkerd.io/NetworkAuthentication": authorization,
	"access.smi-spec.io/TrafficTarget": authorization, "access.smi-spec.io/IdentityBinding": authorization,
	"workload.linkerd.io/ExternalWorkload": "describe it with a Workload that has an address, or a WorkloadEntry",
	"specs.smi-spec.io/UDPRoute":           "leave it out: only a TrafficTarget could refer to it",
}

// table finds kinds.
type table struct {
	dialects []manifest.Dialect
	kinds    []manifest.Kind
	stage    *table // for objects that may have mistakes; nil until there is one
}

// everyKind returns a table to look kinds up in, and for nothing else.
var everyKind = sync.OnceValue(newTable)

func newTable() *table {
	t := &table{dialects: dialects()}
	for _, d := range t.dialects {
		t.kinds = append(t.kinds, d.Kinds...)
	}
	return t
}

// find returns the kind of an object, or nil when it is not translated, which is reported.
func (t *table) find(o *Object, r *manifest.Report) *manifest.Kind {
	group, version := o.Group(), o.Version()
	var sameKind []*manifest.Kind
	var sameGroup []manifest.Kind
	var nearKind bool
	for i := range t.kinds {
		k := &t.kinds[i]
		if k.Group == group {
			sameGroup = append(sameGroup, *k)
			nearKind = nearKind || ident.Nearest(o.Kind, []string{k.Kind}) != ""
		}
		if k.Kind != o.Kind {
			continue
		}
		if k.Group == group && slices.Contains(k.Versions, version) {
			return k
		}
		sameKind = append(sameKind, k)
	}
	known := slices.ContainsFunc(sameKind, func(k *manifest.Kind) bool { return k.Group == group })
	switch {
	case known:
		r.Error(manifest.CodeUnknownKind, o.Root().Field("apiVersion"), t.suggest(o, sameKind, nil), "%s has no version %s", o.Kind, version)
		return nil
	case group == "" && version == "v1" && fineKinds[o.Kind], group == local.Group && o.Kind == "Test": // a Test is for `malha test`
		return nil
	case slices.Contains(strings.Fields(notYet[group]), o.Kind):
		hint := instead[group+"/"+o.Kind]
		if hint == "" {
			hint = "leave it out: nothing of it would be in force"
		}
		r.Error(manifest.CodeNotYetKind, o.Root(), hint, "%s (%s) is not supported by Malha yet", o.Kind, group)
		return nil
	case ignorable(group, version, o.Kind) && !nearKind:
		hint := "nothing on this machine acts on it"
		if programKinds[o.Kind] {
			hint = "describe the program with a Workload (malha.dev/v1alpha1)"
		}
		r.Warning(manifest.CodeIgnoredKind, o.Root(), hint, "%s is ignored on one machine", o.Kind)
		return nil
	}
	if len(sameKind) == 0 && t.foreign(group, o.Kind) {
		hint := "nothing is needed: it belongs to another program"
		if group == "install.istio.io" {
			hint = "it installs Istio: see docs/install.md"
		}
		r.Warning(manifest.CodeIgnoredKind, o.Root(), hint, "Malha knows nothing of %s (%s): it is ignored", o.Kind, group)
		return nil
	}
	at := o.Root().Field("kind")
	if len(sameKind) > 0 {
		at = o.Root().Field("apiVersion")
	}
	r.Error(manifest.CodeUnknownKind, at, t.suggest(o, sameKind, sameGroup), "unknown kind %s in %s", o.Kind, o.APIVersion)
	return nil
}

// PassesOver reports whether an object's kind is one that Translate makes nothing of: nobody on one machine acts on it, or, as a Test,
// it is for somebody else. A service account is not passed over: it exists by being named.
func PassesOver(o *Object) bool {
	if o.Group() == "" && fineKinds[o.Kind] {
		return false
	}
	var r manifest.Report
	kind := everyKind().find(o, &r)
	_, errors := r.Len()
	return kind == nil && errors == 0
}

// ignorable reports whether the object is Kubernetes' own business.
func ignorable(group, version, kind string) bool {
	if group == "" {
		return version == "v1" && slices.Contains(coreKinds, kind)
	}
	return clusterGroups[group]
}

// foreign reports whether an object belongs to another program: its group is none of the dialects' nor looks like one, and its
// kind does not look like one of theirs, so that nobody meant a rule of the mesh by it.
func (t *table) foreign(group, kind string) bool {
	if !strings.Contains(group, ".") { // groups of Kubernetes, and words that are misspelt
		return false
	}
	var groups, names []string
	for i := range t.kinds {
		groups, names = append(groups, t.kinds[i].Group), append(names, t.kinds[i].Kind)
	}
	for g, kinds := range notYet {
		groups, names = append(groups, g), append(names, strings.Fields(kinds)...)
	}
	return !slices.Contains(groups, group) && !slices.Contains(names, kind) &&
		ident.Nearest(group, groups) == "" && ident.Nearest(kind, names) == ""
}

// suggest says which kind the user probably meant.
func (t *table) suggest(o *Object, sameKind []*manifest.Kind, sameGroup []manifest.Kind) string {
	if len(sameKind) > 0 {
		var versions []string
		for _, k := range sameKind {
			for _, v := range k.Versions {
				versions = append(versions, apiVersion(k.Group, v))
			}
		}
		if near := ident.Nearest(o.APIVersion, versions); near != "" {
			return fmt.Sprintf("did you mean apiVersion `%s`?", near)
		}
		return o.Kind + " is known as " + strings.Join(versions, ", ")
	}
	if programKinds[o.Kind] {
		return "describe the program with a Workload (malha.dev/v1alpha1)"
	}
	names, where := namesOf(sameGroup), " of "+o.Group()
	if near := ident.Nearest(o.Kind, names); near != "" {
		return "did you mean `" + near + "`?"
	}
	if all := namesOf(t.kinds); o.Group() == "" || len(names) == 0 {
		names, where = all, ""
	}
	if near := ident.Nearest(o.Kind, names); near != "" {
		return "did you mean `" + near + "`?"
	}
	return "known kinds" + where + ": " + strings.Join(names, ", ")
}

// namesOf returns the names of kinds, each once, sorted.
func namesOf(kinds []manifest.Kind) []string {
	var out []string
	for i := range kinds {
		out = append(out, kinds[i].Kind)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func apiVersion(group, version string) string {
	if group == "" {
		return version
	}
	return group + "/" + version
}
