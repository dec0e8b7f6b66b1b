// Package release is what an installation consists of: the objects of the chart, in the order in which they are applied.
//
// In: the embedded chart (package chart), a profile and values. Out: the objects, rendered by Helm's own engine, so that they are
// what `helm template` gives. Render reads no cluster and no file; internal/ctl applies what comes out.
package release

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	helm "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	yamlout "sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/chart"
)

// Names that everything agrees on.
const (
	Name      = "malha"
	Namespace = "malha-system" // of the mesh, unless told otherwise

	LabelPartOf  = "app.kubernetes.io/part-of" // on everything of the mesh, also what the control plane makes
	LabelRelease = "malha.dev/release"         // on what the chart makes
)

// Profiles are the profiles there are.
func Profiles() []string {
	entries, _ := fs.ReadDir(chart.Files, "malha/profiles")
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Options say what is installed.
type Options struct {
	Profile   string   // "" is default
	Namespace string   // "" is malha-system
	Version   string   // of the images, when no value says otherwise
	Values    [][]byte // YAML, as of `helm -f`; later ones win
	Set       []string // "a.b=c", as of `helm --set`; after Values
	Adopt     []string // istio, linkerd
}

// Release is an installation.
type Release struct {
	Namespace string
	Values    map[string]any // what the templates saw
	Objects   []unstructured.Unstructured
}

// Render makes the objects. The error says which value is wrong.
func Render(o Options) (*Release, error) {
	ch, err := load(o.Version)
	if err != nil {
		return nil, err
	}
	values, err := o.values()
	if err != nil {
		return nil, err
	}
	namespace := cmp.Or(o.Namespace, Namespace)
	caps := chartutil.DefaultCapabilities.Copy()
	// Validates against values.schema.json.
	top, err := chartutil.ToRenderValues(ch, values, chartutil.ReleaseOptions{Name: Name, Namespace: namespace, Revision: 1, IsInstall: true}, caps)
	if err != nil {
		return nil, fmt.Errorf("values that the chart does not take: %w; docs/install.md lists what there is", cleaned(err))
	}
	if r, ok := top["Release"].(map[string]any); ok {
		r["Service"] = Name // who manages these objects; Helm says Helm
	}
	files, err := engine.Render(ch, top)
	if err != nil {
		return nil, fmt.Errorf("rendering the chart: %w", err)
	}
	out := &Release{Namespace: namespace}
	if v, ok := top["Values"].(chartutil.Values); ok {
		out.Values = v
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasPrefix(name[strings.LastIndex(name, "/")+1:], "_") || strings.HasSuffix(name, "NOTES.txt") {
			continue
		}
		objects, err := parse(files[name])
		if err != nil {
			return nil, fmt.Errorf("rendering %s: %w", name, err)
		}
		out.Objects = append(out.Objects, objects...)
	}
	slices.SortStableFunc(out.Objects, func(a, b unstructured.Unstructured) int { return cmp.Compare(Order(a.GetKind()), Order(b.GetKind())) })
	return out, nil
}

func load(version string) (*helm.Chart, error) {
	var files []*loader.BufferedFile
	err := fs.WalkDir(chart.Files, "malha", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := chart.Files.ReadFile(path)
		files = append(files, &loader.BufferedFile{Name: strings.TrimPrefix(path, "malha/"), Data: data})
		return err
	})
	if err != nil {
		return nil, err
	}
	ch, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("the embedded chart: %w", err)
	}
	if version != "" {
		ch.Metadata.AppVersion = version
	}
	return ch, nil
}

// values lays the user's values over the profile's.
func (o *Options) values() (map[string]any, error) {
	profile := cmp.Or(o.Profile, "default")
	data, err := chart.Files.ReadFile("malha/profiles/" + profile + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("there is no profile %q; there are %s", profile, strings.Join(Profiles(), ", "))
	}
	merged := map[string]any{"createNamespace": true}
	for _, data := range append([][]byte{data}, o.Values...) {
		var v map[string]any
		if err := yamlout.Unmarshal(data, &v); err != nil {
			return nil, fmt.Errorf("values: %w", err)
		}
		merged = chartutil.MergeTables(v, merged) // the first wins, also with null, which takes away what values.yaml has
	}
	for _, s := range o.Set {
		if err := strvals.ParseInto(s, merged); err != nil {
			return nil, fmt.Errorf("--set %s: %w; write path.to.value=VALUE", s, err)
		}
	}
	for _, a := range o.Adopt {
		if a != "istio" && a != "linkerd" {
			return nil, fmt.Errorf("--adopt %s: there is istio and linkerd", a)
		}
		if err := strvals.ParseInto("adopt."+a+"=true", merged); err != nil {
			return nil, err
		}
	}
	return merged, nil
}

// at is how the schema's library says where it is: a JSON pointer (RFC 6901).
var at = regexp.MustCompile(`^at '/?([^']*)': `)

// cleaned leaves out of an error of the schema what only says that there is one, and writes values as --set has them.
func cleaned(err error) error {
	var keep []string
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "values don't meet") || line == Name+":" || strings.HasSuffix(line, "'anyOf' failed") {
			continue
		}
		line = strings.TrimPrefix(line, "- ")
		if m := at.FindStringSubmatch(line); m != nil {
			path := strings.ReplaceAll(m[1], "/", ".")
			line = strings.TrimPrefix(path+": ", ": ") + line[len(m[0]):]
		}
		keep = append(keep, line)
	}
	slices.Sort(keep) // the schema's own order changes
	return errors.New(strings.Join(keep, "; "))
}

// parse reads the documents of a rendered template.
func parse(text string) ([]unstructured.Unstructured, error) {
	var out []unstructured.Unstructured
	d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		var u unstructured.Unstructured
		switch err := d.Decode(&u.Object); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, err
		case len(u.Object) > 0:
			out = append(out, u)
		}
	}
}

// order is when kinds are applied; what others refer to first. The webhooks come last, behind the control plane that answers them.
var order = []string{
	"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap",
	"Service", "PodDisruptionBudget", "Deployment", "HorizontalPodAutoscaler", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration",
}

// Order returns when objects of a kind are applied, from 0 upward; deletion goes the other way.
func Order(kind string) int {
	if i := slices.Index(order, kind); i >= 0 {
		return i
	}
	return len(order)
}

// YAML is the objects as a file for kubectl.
func (r *Release) YAML() ([]byte, error) {
	var b bytes.Buffer
	for i := range r.Objects {
		data, err := yamlout.Marshal(r.Objects[i].Object)
		if err != nil {
			return nil, err
		}
		b.WriteString("---\n")
		b.Write(data)
	}
	return b.Bytes(), nil
}
