package istio

import (
	"maps"
	"regexp"
	"slices"

	networking "istio.io/api/networking/v1beta1"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

var proxyConfigFields = manifest.Join(
	manifest.Work("", "selector", "concurrency", "environmentVariables"),
	manifest.Ignore("Malha's proxy has one image", "image"),
)

// variable is the name of an environment variable (IEEE Std 1003.1, section 8.1, in any case).
var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// maxVariable is the longest value of a variable that the API server takes, in bytes.
const maxVariable = 2048

func proxyConfig(o *manifest.Object, spec []byte, out *model.Config, report *manifest.Report) {
	r, at := newReader(o, report), o.Spec()
	in := &networking.ProxyConfig{}
	if !r.decode(spec, in) {
		return
	}
	p := model.ProxyConfig{Meta: o.Meta(), Selector: r.selector(at.Field("selector").Field("matchLabels"), in.GetSelector().GetMatchLabels())}
	if c := in.GetConcurrency(); c != nil {
		n := int(r.count(at.Field("concurrency"), c.GetValue()))
		p.Concurrency = &n
	}
	for _, name := range slices.Sorted(maps.Keys(in.GetEnvironmentVariables())) {
		here, value := at.Field("environmentVariables").Key(name), in.GetEnvironmentVariables()[name]
		if !variable.MatchString(name) {
			r.Error(manifest.CodeBadValue, here, "letters, digits and '_'", "%q is not the name of a variable", name)
		}
		if len(value) > maxVariable {
			r.Error(manifest.CodeOutOfRange, here, "", "the value has %d bytes: at most %d may be", len(value), maxVariable)
		}
		p.Env = append(p.Env, model.EnvVar{Name: name, Value: value})
	}
	if o.Name.Namespace == ident.RootNamespace && len(p.Selector) > 0 {
		r.Warning(manifest.CodeIgnoredField, at.Field("selector"), "move it to the namespace of the workloads", "a selector has no effect in %s, where a ProxyConfig is for the whole mesh", ident.RootNamespace)
		return
	}
	out.Proxies = append(out.Proxies, p)
}
