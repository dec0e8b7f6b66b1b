package manifest

import (
	"errors"
	"io"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/malha-mesh/malha/internal/ident"
)

// Names as Kubernetes has them ("Object Names and IDs"; "Labels and Selectors: syntax and character set").
var (
	subdomain  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	dnsLabel   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`)
	labelName  = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
)

// IsDNSLabel reports whether s is a Kubernetes DNS label: the form of a namespace, a Service, a port name.
func IsDNSLabel(s string) bool { return len(s) <= 63 && dnsLabel.MatchString(s) }

// IsSubdomain reports whether s can be the name of an object.
func IsSubdomain(s string) bool { return len(s) <= 253 && subdomain.MatchString(s) }

// IsLabel reports whether key and value can be a label.
func IsLabel(key, value string) bool {
	prefix, name, ok := strings.Cut(key, "/")
	if !ok {
		prefix, name = "", key
	}
	return len(name) <= 63 && len(value) <= 63 && labelName.MatchString(name) && labelValue.MatchString(value) && (!ok || IsSubdomain(prefix))
}

// metadata fields that people or the API server set and that mean nothing to a mesh.
var inertMetadata = map[string]bool{
	"resourceVersion": true, "managedFields": true, "ownerReferences": true, "selfLink": true,
	"finalizers": true, "deletionTimestamp": true, "deletionGracePeriodSeconds": true, "clusterName": true,
}

// metadata reads an object's metadata and keeps the object when it has a usable name.
func (p *parser) metadata(o *Object) {
	before := len(p.report.found)
	o.Origin.Kind = o.Kind
	_, m := lookup(o.Node, "metadata")
	switch {
	case m == nil || m.ShortTag() == "!!null":
		p.fail(CodeMetadata, o.Node.Line, "add metadata: {name: …}", "%s has no metadata", o.Kind)
		return
	case m.Kind != yaml.MappingNode:
		p.fail(CodeMetadata, m.Line, "write metadata: {name: …}", "metadata must be an object, not %s", describe(m))
		return
	}
	o.Name.Namespace = ident.DefaultNamespace
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		if value.ShortTag() == "!!null" {
			continue
		}
		switch key.Value {
		case "name":
			o.Name.Name = p.scalar("metadata.name", value)
		case "namespace":
			if ns := p.scalar("metadata.namespace", value); ns != "" {
				o.Name.Namespace = ns
			}
		case "labels":
			o.Labels = p.strings("metadata.labels", value)
			for i := 0; o.Labels != nil && i+1 < len(value.Content); i += 2 {
				k := value.Content[i]
				if v := o.Labels[k.Value]; !IsLabel(k.Value, v) {
					p.fail(CodeMetadata, k.Line, "letters, digits, '-', '_' and '.', at most 63 of them", "metadata.labels: %s=%s is not a valid label", quoted(k.Value), quoted(v))
				}
			}
		case "annotations":
			o.Annotations = p.strings("metadata.annotations", value)
			for i := 0; o.Annotations != nil && i+1 < len(value.Content); i += 2 {
				if k := value.Content[i]; !IsLabel(strings.ToLower(k.Value), "") { // in Kubernetes too, case means nothing there
					p.fail(CodeMetadata, k.Line, "letters, digits, '-', '_' and '.', at most 63 of them; a domain and / may stand before", "metadata.annotations: %s is not a valid name of an annotation", quoted(k.Value))
				}
			}
		case "creationTimestamp":
			t, err := time.Parse(time.RFC3339, value.Value)
			if err != nil {
				p.fail(CodeMetadata, value.Line, "leave it out, or write 2006-01-02T15:04:05Z", "metadata.creationTimestamp must be a time, not %s", describe(value))
			}
			o.Created = t
		case "generation":
			if err := value.Decode(&o.Generation); err != nil {
				p.fail(CodeMetadata, value.Line, "leave it out", "metadata.generation must be a whole number, not %s", describe(value))
			}
		case "uid":
			o.UID = p.scalar("metadata.uid", value)
		case "generateName":
			p.fail(CodeMetadata, key.Line, "give it a name", "metadata.generateName has no meaning in a file")
		default:
			if !inertMetadata[key.Value] {
				known := []string{"name", "namespace", "labels", "annotations", "creationTimestamp"}
				p.fail(CodeUnknownField, key.Line, DidYouMean(key.Value, known), "metadata has no field `%s`", key.Value)
			}
		}
	}
	if len(p.report.found) == before { // a name that is malformed was said to be so already
		switch {
		case o.Name.Name == "":
			p.fail(CodeMetadata, m.Line, "add metadata.name", "%s has no name", o.Kind)
		case !IsSubdomain(o.Name.Name):
			p.fail(CodeMetadata, m.Line, "lower-case letters, digits, '-' and '.', at most 253 of them", "metadata.name %s is not a valid name", quoted(o.Name.Name))
		case !IsDNSLabel(o.Name.Namespace):
			p.fail(CodeMetadata, m.Line, "lower-case letters, digits and '-', at most 63 of them", "metadata.namespace %s is not a valid namespace", quoted(o.Name.Namespace))
		}
	}
	o.Origin.Namespace, o.Origin.Name = oneLine(o.Name.Namespace, mostName), oneLine(o.Name.Name, mostName)
	for i := before; i < len(p.report.found); i++ { // diagnostics of metadata name the object they are about
		origin := &p.report.found[i].Origin
		origin.Kind, origin.Namespace, origin.Name = o.Origin.Kind, o.Origin.Namespace, o.Origin.Name
	}
	if len(p.report.found) == before {
		p.objects = append(p.objects, *o)
	}
}

func (p *parser) scalar(path string, n *yaml.Node) string {
	if !isString(n) {
		p.fail(CodeMetadata, n.Line, quoteHint(n), "%s must be a string, not %s", path, describe(n))
		return ""
	}
	return n.Value
}

func (p *parser) strings(path string, n *yaml.Node) map[string]string {
	if n.Kind != yaml.MappingNode {
		p.fail(CodeMetadata, n.Line, "", "%s must be an object, not %s", path, describe(n))
		return nil
	}
	out := make(map[string]string, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if value.ShortTag() == "!!null" {
			out[key.Value] = ""
			continue
		}
		out[key.Value] = p.scalar(path+"["+key.Value+"]", value)
	}
	return out
}

// quoteHint says how to write a number, boolean or date as a string.
func quoteHint(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
		return `quote it: "` + n.Value + `"`
	}
	return ""
}

// Text reads YAML that stands inside a string, such as an annotation. What v has no field for is an error.
func Text(text string, v any) error {
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	err := d.Decode(v)
	var wrong *yaml.TypeError
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &wrong) && len(wrong.Errors) > 0: // "line 1: field x not found in type …", which is Go's
		message, _, _ := strings.Cut(wrong.Errors[0], " in type ")
		return errors.New(message)
	}
	return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
}
