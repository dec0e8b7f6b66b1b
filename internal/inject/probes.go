package inject

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/malha-mesh/malha/internal/probe"
)

// rewriteProbes sends the questions of the kubelet to the proxy, and returns what it is to ask then.
func (s *settings) rewriteProbes(spec *corev1.PodSpec, p *Patch, st *status, r *Result) (probe.Set, error) {
	if !s.rewrite {
		return nil, nil
	}
	set := probe.Set{}
	for _, list := range []struct {
		field      string
		containers []corev1.Container
	}{{"initContainers", spec.InitContainers}, {"containers", spec.Containers}} {
		for i := range list.containers {
			w := &rewriter{container: &list.containers[i], at: []any{"spec", list.field, i}, patch: p, status: st, set: set, result: r}
			for _, q := range []struct {
				field, question string
				probe           *corev1.Probe
			}{
				{"livenessProbe", probe.Live, w.container.LivenessProbe}, {"readinessProbe", probe.Ready, w.container.ReadinessProbe}, {"startupProbe", probe.Start, w.container.StartupProbe},
			} {
				if q.probe != nil {
					if err := w.rewrite(q.question, &q.probe.ProbeHandler, int(q.probe.TimeoutSeconds), q.field); err != nil {
						return nil, err
					}
				}
			}
			if l := w.container.Lifecycle; l != nil {
				for _, h := range []struct {
					field, question string
					handler         *corev1.LifecycleHandler
				}{{"postStart", probe.PostStart, l.PostStart}, {"preStop", probe.PreStop, l.PreStop}} {
					// A hook's tcpSocket is kept by the API for the sake of old objects, and always fails; sleep and exec need no network.
					if h.handler != nil && h.handler.HTTPGet != nil {
						if err := w.rewrite(h.question, &corev1.ProbeHandler{HTTPGet: h.handler.HTTPGet}, hookSeconds, "lifecycle", h.field); err != nil {
							return nil, err
						}
					}
				}
			}
		}
	}
	return set, nil
}

// hookSeconds bounds a lifecycle hook, which has no time of its own but the pod's.
const hookSeconds = 60

// rewriter rewrites the probes of one container.
type rewriter struct {
	container *corev1.Container
	at        []any
	patch     *Patch
	status    *status
	set       probe.Set
	result    *Result
}

func (w *rewriter) rewrite(question string, h *corev1.ProbeHandler, seconds int, field ...string) error {
	q, kind, original, ok := w.read(h, strings.Join(field, "."))
	if !ok {
		return nil
	}
	q.Seconds = seconds
	path := probe.Path(w.container.Name, question)
	w.set[path] = q
	value, err := json.Marshal(original)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	w.status.Probes = append(w.status.Probes, was{Container: w.container.Name, Field: strings.Join(field, "/"), Kind: kind, Value: value})
	at := append([]any{}, w.at...)
	for _, f := range field {
		at = append(at, f)
	}
	w.patch.remove(append(at, kind)...)
	// Its own status is asked at the pod's address, where the proxy's health port is not captured.
	w.patch.add(map[string]any{"path": path, "port": HealthPort, "scheme": "HTTP"}, append(at, "httpGet")...)
	return nil
}

// read returns what a probe asks. It is left alone when nobody but the kubelet can ask it.
func (w *rewriter) read(h *corev1.ProbeHandler, field string) (q probe.Probe, kind string, original any, ok bool) {
	leave := func(format string, args ...any) (probe.Probe, string, any, bool) {
		w.result.note("%s of container %s is not rewritten: %s", field, w.container.Name, fmt.Sprintf(format, args...))
		return probe.Probe{}, "", nil, false
	}
	switch {
	case h.HTTPGet != nil:
		g := h.HTTPGet
		if g.Host != "" {
			return leave("it asks host %s, not the pod; to name a virtual host write it as the header Host", g.Host)
		}
		port, known := w.port(g.Port)
		if !known {
			return leave("the container has no port %s", g.Port.String())
		}
		if strings.ContainsAny(g.Path, " \r\n\t\x00") {
			return leave("its path holds white space")
		}
		ask := &probe.HTTP{Port: port, Path: g.Path, TLS: strings.EqualFold(string(g.Scheme), "https")}
		for _, f := range g.HTTPHeaders {
			ask.Headers = append(ask.Headers, probe.Header{Name: f.Name, Value: f.Value})
		}
		return probe.Probe{HTTP: ask}, "httpGet", g, true
	case h.TCPSocket != nil:
		g := h.TCPSocket
		if g.Host != "" {
			return leave("it asks host %s, not the pod", g.Host)
		}
		port, known := w.port(g.Port)
		if !known {
			return leave("the container has no port %s", g.Port.String())
		}
		return probe.Probe{TCP: &probe.TCP{Port: port}}, "tcpSocket", g, true
	case h.GRPC != nil:
		g := h.GRPC
		if g.Port < 1 || g.Port > 65535 {
			return leave("port %d is none", g.Port)
		}
		ask := &probe.GRPC{Port: int(g.Port)}
		if g.Service != nil {
			ask.Service = *g.Service
		}
		return probe.Probe{GRPC: ask}, "grpc", g, true
	}
	return probe.Probe{}, "", nil, false // exec needs no network
}

// port returns a port's number: names are those of the container's own ports.
func (w *rewriter) port(p intstr.IntOrString) (int, bool) {
	if p.Type == intstr.Int {
		return p.IntValue(), p.IntValue() >= 1 && p.IntValue() <= 65535
	}
	for _, c := range w.container.Ports {
		if c.Name == p.StrVal {
			return int(c.ContainerPort), true
		}
	}
	return 0, false
}

func portNumber(n int) intstr.IntOrString { return intstr.FromInt32(int32(n)) }

// escaped is a value of an environment variable that the kubelet gives to the program unchanged: it would replace $(NAME).
func escaped(v string) string { return strings.ReplaceAll(v, "$", "$$") }
