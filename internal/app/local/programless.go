package local

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/config"
)

// programless says that a folder has no Workload. A folder that was written for a cluster has what the cluster runs instead: for the first of
// those it says how to write it here, as far as the manifests tell.
func programless(folder string, objects []config.Object) error {
	const what = "add one for each program (kind: Workload, apiVersion: malha.dev/v1alpha1), see `malha up --help`"
	var pods []podded
	for i := range objects {
		if p, ok := asPodded(&objects[i]); ok {
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		return fmt.Errorf("no Workload in %s; %s", folder, what)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "no Workload in %s, and nothing on one machine runs the containers of ", folder)
	for i, p := range pods {
		if i == 6 && len(pods) > 7 {
			fmt.Fprintf(&b, " and %d more", len(pods)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p.kind + " " + p.name)
	}
	fmt.Fprintf(&b, "; %s. The Services and rules can stay as they are.\nThe first of them, in a file beside it, with a command of yours:\n\n%s\nOr bring the folder to a cluster: `malha install`, then `kubectl apply`. `malha up` without -f runs Bookinfo itself.",
		what, pods[0].workload(objects))
	return fmt.Errorf("%s", b.String())
}

// podded is an object by which a cluster runs pods.
type podded struct {
	kind, name, namespace string
	labels                map[string]string // of the pods
	template              podTemplate
}

type podTemplate struct {
	Metadata struct {
		Labels map[string]string `yaml:"labels"`
	} `yaml:"metadata"`
	Spec podSpec `yaml:"spec"`
}

type podSpec struct {
	ServiceAccount string `yaml:"serviceAccountName"`
	Containers     []struct {
		Image string `yaml:"image"`
		Ports []struct {
			Name string `yaml:"name"`
			Port int    `yaml:"containerPort"`
		} `yaml:"ports"`
	} `yaml:"containers"`
}

// asPodded reads an object of a kind that runs pods. What of it cannot be read is left out: it is an example that is being made.
func asPodded(o *config.Object) (podded, bool) {
	p := podded{kind: o.Kind, name: o.Name.Name, namespace: o.Name.Namespace}
	switch {
	case o.Group() == "" && o.Kind == "Pod":
		_ = decode(o.Node, &p.template)
	case o.Group() == "apps" && (o.Kind == "Deployment" || o.Kind == "StatefulSet" || o.Kind == "DaemonSet" || o.Kind == "ReplicaSet"):
		var spec struct {
			Spec struct {
				Template podTemplate `yaml:"template"`
			} `yaml:"spec"`
		}
		_ = decode(o.Node, &spec)
		p.template = spec.Spec.Template
	default:
		return podded{}, false
	}
	p.labels = p.template.Metadata.Labels
	return p, true
}

func decode(n *yaml.Node, into any) error {
	if n == nil {
		return nil
	}
	return n.Decode(into)
}

// workload is the Workload of the object's first container.
func (p *podded) workload(objects []config.Object) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  apiVersion: malha.dev/v1alpha1\n  kind: Workload\n  metadata: {name: %s, namespace: %s, labels: %s}\n  spec:\n", p.name, p.namespace, flow(p.labels))
	if a := p.template.Spec.ServiceAccount; a != "" {
		fmt.Fprintf(&b, "    serviceAccount: %s\n", a)
	}
	image, ports := "", []string(nil)
	for i, c := range p.template.Spec.Containers {
		if i == 0 {
			image = " # what " + c.Image + " runs; it is to listen on $(PORT)"
		}
		for _, port := range c.Ports {
			name := port.Name
			if name == "" {
				name = p.portName(objects, port.Port)
			}
			ports = append(ports, fmt.Sprintf("{name: %s, port: %d}", name, port.Port))
		}
	}
	if len(ports) == 0 {
		ports = []string{"{name: http, port: 8080}"}
	}
	fmt.Fprintf(&b, "    ports: [%s]\n    run: {command: [./%s, \"$(PORT)\"]}%s\n", strings.Join(ports, ", "), p.name, image)
	return b.String()
}

// portName is what a Service of the pods calls their port, which says its protocol.
func (p *podded) portName(objects []config.Object, port int) string {
	for i := range objects {
		o := &objects[i]
		if o.Group() != "" || o.Kind != "Service" || o.Name.Namespace != p.namespace {
			continue
		}
		var s struct {
			Spec struct {
				Selector map[string]string `yaml:"selector"`
				Ports    []struct {
					Name   string `yaml:"name"`
					Port   int    `yaml:"port"`
					Target string `yaml:"targetPort"`
				} `yaml:"ports"`
			} `yaml:"spec"`
		}
		_ = decode(o.Node, &s)
		selects := len(s.Spec.Selector) > 0
		for k, v := range s.Spec.Selector {
			selects = selects && p.labels[k] == v
		}
		for _, sp := range s.Spec.Ports {
			if selects && sp.Name != "" && (sp.Target == strconv.Itoa(port) || sp.Target == "" && sp.Port == port) {
				return sp.Name
			}
		}
	}
	return "port-" + strconv.Itoa(port)
}

// flow writes labels in one line.
func flow(labels map[string]string) string {
	n := yaml.Node{}
	if err := n.Encode(labels); err != nil {
		return "{}"
	}
	n.Style = yaml.FlowStyle
	out, err := yaml.Marshal(&n)
	if err != nil {
		return "{}"
	}
	return strings.Join(strings.Fields(string(out)), " ")
}
