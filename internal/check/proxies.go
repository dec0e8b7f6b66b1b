package check

import (
	"context"
	"fmt"
	"strings"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/ident"
)

func (f *facts) data() []section {
	return []section{
		{"injection", []check{
			{name: "pods in namespaces of the mesh have a proxy", ask: f.injected},
			{name: "no pod is refused by the injector", ask: f.refused},
			{name: "no pod of the mesh uses the network of its node", ask: f.hostNetwork},
		}},
		{"proxies", []check{
			{name: "they are ready", ask: f.ready},
			{name: "they run the configuration in force", ask: f.synced},
			{name: "their certificates are valid", ask: f.valid},
			{name: "they are of the version of the control plane", ask: f.sameVersion},
		}},
	}
}

// optedOut reports whether a pod says that it is not to be injected.
func optedOut(p *core.Pod) bool {
	return p.Labels[labelInject] == "disabled" || p.Labels["sidecar.istio.io/inject"] == "false" ||
		p.Annotations["sidecar.istio.io/inject"] == "false" || p.Annotations["linkerd.io/inject"] == "disabled"
}

// inSpaces calls each for every pod, that has not ended, of a namespace of the mesh.
func (f *facts) inSpaces(ctx context.Context, each func(*core.Pod)) error {
	spaces, err := f.meshNamespaces(ctx)
	if err != nil {
		return err
	}
	mesh := map[string]bool{}
	for i := range spaces {
		mesh[spaces[i].Name] = true
	}
	pods, err := f.allPods(ctx)
	if err != nil {
		return err
	}
	for i := range pods {
		p := &pods[i]
		if mesh[p.Namespace] && p.Status.Phase != core.PodSucceeded && p.Status.Phase != core.PodFailed && p.DeletionTimestamp == nil {
			each(p)
		}
	}
	return nil
}

func (f *facts) injected(ctx context.Context) error {
	var bare []string
	err := f.inSpaces(ctx, func(p *core.Pod) {
		if _, has := Proxy(p); !has && !optedOut(p) && !p.Spec.HostNetwork {
			bare = append(bare, p.Namespace+"/"+p.Name)
		}
	})
	if err == nil && len(bare) > 0 {
		return doubtful("they were made before the namespace joined: kubectl -n NAMESPACE rollout restart deployment; `malha check-inject POD` says why for one", "docs/injection.md", "without one: %s", some(bare))
	}
	return err
}

func (f *facts) hostNetwork(ctx context.Context) error {
	var pods []string
	err := f.inSpaces(ctx, func(p *core.Pod) {
		if p.Spec.HostNetwork && !optedOut(p) {
			pods = append(pods, p.Namespace+"/"+p.Name)
		}
	})
	if err == nil && len(pods) > 0 {
		return doubtful("label them malha.dev/inject: disabled to say that it is meant, or take hostNetwork away", "docs/injection.md", "their traffic is not captured, and strict mutual TLS refuses it: %s", some(pods))
	}
	return err
}

var events = cluster.Kind{Version: "v1", Resource: "events"}

// refused finds what the API server told controllers whose pods the webhook did not admit.
func (f *facts) refused(ctx context.Context) error {
	all, err := cluster.List[core.Event](ctx, f.c, events, f.Only, "")
	if err != nil {
		return err
	}
	var who []string
	first := ""
	for i := range all {
		e := &all[i]
		when := e.LastTimestamp.Time
		if when.IsZero() {
			when = e.EventTime.Time
		}
		if e.Reason != "FailedCreate" || !strings.Contains(e.Message, "inject.malha.dev") || f.Now().Sub(when) > 15*time.Minute {
			continue
		}
		if who = append(who, fmt.Sprintf("%s %s/%s", e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name)); first == "" {
			first = e.Message
		}
	}
	if len(who) > 0 {
		return wrong("the message names the annotation or the cause; `malha inject -f FILE` shows the same before", "docs/injection.md", "in the last 15 minutes: %s; the first: %s", some(who), first)
	}
	return nil
}

// infancy is how long a pod may take to start before that is a trouble: its images are fetched, its init containers run.
const infancy = time.Minute

// starting reports whether nothing is wrong with a pod but that it is young.
func (f *facts) starting(p *core.Pod) bool {
	began := p.CreationTimestamp.Time
	if p.Status.StartTime != nil {
		began = p.Status.StartTime.Time
	}
	return f.Now().Sub(began) < infancy && !cluster.Failing(p)
}

func (f *facts) ready(ctx context.Context) error {
	pods, err := f.allPods(ctx)
	if err != nil {
		return err
	}
	var not, starting []string
	first := ""
	for i := range pods {
		p := &pods[i]
		status, has := Proxy(p)
		switch {
		case !has || p.DeletionTimestamp != nil || p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed || status != nil && status.Ready:
		case f.starting(p):
			starting = append(starting, p.Namespace+"/"+p.Name)
		default:
			if not = append(not, p.Namespace+"/"+p.Name); first == "" {
				first = p.Name + ": " + cluster.Trouble(p)
			}
		}
	}
	switch {
	case len(not) > 0:
		return wrong("kubectl -n NAMESPACE describe pod NAME; kubectl -n NAMESPACE logs NAME -c malha-proxy", "docs/kubernetes.md", "not ready: %s; the first: %s", some(not), first)
	case len(starting) > 0:
		return doubtful("ask again in a minute", "docs/kubernetes.md", "starting, since less than a minute: %s", some(starting))
	}
	return nil
}

// each calls do for every proxy that the control plane knows.
func (f *facts) each(ctx context.Context, do func(*control.ProxyStatus)) error {
	d, err := f.debugged(ctx)
	if err != nil {
		return err
	}
	for i := range d.Proxies {
		if p := &d.Proxies[i]; f.Only == "" || p.Name.Namespace == f.Only {
			do(p)
		}
	}
	return nil
}

func (f *facts) synced(ctx context.Context) error {
	pods, err := f.allPods(ctx)
	if err != nil {
		return err
	}
	passing := map[ident.Name]bool{} // of pods that come or go: said where it is asked whether they are ready, if at all
	for i := range pods {
		if p := &pods[i]; p.DeletionTimestamp != nil || f.starting(p) {
			passing[ident.Name{Namespace: p.Namespace, Name: p.Name}] = true
		}
	}
	var failed, stale []string
	first := ""
	err = f.each(ctx, func(p *control.ProxyStatus) {
		if passing[p.Name] && p.Sync == control.Stale {
			return
		}
		switch p.Sync {
		case control.Failed:
			if failed = append(failed, p.Name.String()); first == "" {
				first = p.Reason
			}
		case control.Stale:
			stale = append(stale, p.Name.String()+" ("+p.Reason+")")
		}
	})
	switch {
	case err != nil:
		return err
	case len(failed) > 0:
		return wrong("`malha proxy-status` shows each; update proxies that are older than the control plane by restarting their pods", "docs/kubernetes.md", "they refused something and go on with what they had: %s; the first: %s", some(failed), first)
	case len(stale) > 0:
		return doubtful("`malha proxy-status` shows each; see the log of the proxy", "docs/kubernetes.md", "not up to date: %s", some(stale))
	}
	return nil
}

func (f *facts) valid(ctx context.Context) error {
	var late []string
	err := f.each(ctx, func(p *control.ProxyStatus) {
		if p.Connected && !p.CertExpires.IsZero() && !f.Now().Before(p.CertExpires) {
			late = append(late, p.Name.String())
		}
	})
	if err == nil && len(late) > 0 {
		return wrong("see the log of these proxies for why they could not renew it; restarting a pod asks anew", "docs/kubernetes.md", "expired: %s", some(late))
	}
	return err
}

func (f *facts) sameVersion(ctx context.Context) error {
	d, err := f.debugged(ctx)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, v := range d.Versions {
		have[v] = true
	}
	var other []string
	err = f.each(ctx, func(p *control.ProxyStatus) {
		if p.Version != "" && !have[p.Version] {
			other = append(other, p.Name.String()+" ("+p.Version+")")
		}
	})
	if err == nil && len(other) > 0 {
		return doubtful("restart their pods: kubectl -n NAMESPACE rollout restart deployment", "docs/install.md#upgrades", "of another: %s", some(other))
	}
	return err
}
