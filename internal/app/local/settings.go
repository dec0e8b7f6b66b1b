package local

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// proxySettings is what ProxyConfigs say about one proxy. It is given at the start; another one takes another proxy.
type proxySettings struct {
	threads int // 0: as many as there are processors
	env     map[string]string
}

func (s proxySettings) same(o proxySettings) bool {
	return s.threads == o.threads && maps.Equal(s.env, o.env)
}

// settingsOf merges ProxyConfigs: the mesh's, the namespace's, then the workload's; what the later one says counts, of several of
// one kind the oldest (Istio "ProxyConfig": merge order).
func settingsOf(all []model.ProxyConfig, namespace string, labels map[string]string) proxySettings {
	out := proxySettings{env: map[string]string{}}
	rank := func(p *model.ProxyConfig) int {
		switch {
		case p.Name.Namespace == namespace && len(p.Selector) > 0 && model.HasLabels(labels, p.Selector):
			return 3
		case p.Name.Namespace == namespace && len(p.Selector) == 0:
			return 2
		case p.Name.Namespace == ident.RootNamespace && len(p.Selector) == 0:
			return 1
		}
		return 0
	}
	best := map[int]*model.ProxyConfig{}
	for i := range all {
		p := &all[i]
		r := rank(p)
		if first := best[r]; first == nil || p.Created.Before(first.Created) { // they are sorted by name
			best[r] = p
		}
	}
	for r := 1; r <= 3; r++ {
		p := best[r]
		if p == nil {
			continue
		}
		if p.Concurrency != nil {
			out.threads = *p.Concurrency
		}
		for _, e := range p.Env {
			out.env[e.Name] = e.Value
		}
	}
	return out
}

// proxyEnvironment is the supervisor's own environment without what would send the proxy's traffic elsewhere, and then what
// the settings add.
func proxyEnvironment(s proxySettings) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		_, set := s.env[name]
		return strings.HasSuffix(strings.ToLower(name), "_proxy") || set || s.threads > 0 && name == "GOMAXPROCS"
	})
	for _, name := range slices.Sorted(maps.Keys(s.env)) {
		env = append(env, name+"="+s.env[name])
	}
	if s.threads > 0 {
		env = append(env, fmt.Sprintf("GOMAXPROCS=%d", s.threads))
	}
	return env
}
