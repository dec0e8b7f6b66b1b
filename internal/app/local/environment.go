package local

import (
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// variables returns what a local program is told about where to listen and where its neighbours are:
//
//	PORT, PORT_<NAME>, PORT_<NUMBER>          where to listen: the first port, a port by its name or number
//	HTTP_PROXY, http_proxy, NO_PROXY, …       the sidecar's forward proxy: plain http:// requests take it by themselves
//	<SERVICE>_SERVICE_HOST, _SERVICE_PORT, …  the sidecar's local listener for each service of its namespace, in the
//	                                          shape Kubernetes has (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables)
//	<HOST>_SERVICE_HOST, _SERVICE_PORT, …     the same for each host of a ServiceEntry: HTTPBIN_ORG_SERVICE_PORT
//	MALHA_WORKLOAD, MALHA_NAMESPACE           who it is
//
// HTTPS_PROXY is left alone: what a program encrypts itself the mesh could only pass on.
func variables(w *model.Workload, in *model.Instance, services []model.Service) map[string]string {
	v := map[string]string{
		"MALHA_WORKLOAD":  w.Name.Name,
		"MALHA_NAMESPACE": w.Name.Namespace,
		"MALHA_IDENTITY":  w.Identity.URI(),
		"NO_PROXY":        "localhost,127.0.0.1,::1",
		"no_proxy":        "localhost,127.0.0.1,::1",
	}
	if in.Forward != "" {
		v["HTTP_PROXY"] = "http://" + in.Forward
		v["http_proxy"] = "http://" + in.Forward
	}
	for i, p := range w.Ports {
		port := portOf(in.App[p.Port])
		if i == 0 {
			v["PORT"] = port
		}
		v["PORT_"+strconv.Itoa(p.Port)] = port
		if p.Name != "" {
			v["PORT_"+variableName(p.Name)] = port
		}
	}
	for _, s := range services {
		if s.Name.Namespace != w.Name.Namespace {
			continue
		}
		prefix := variableName(s.Name.Name) + "_SERVICE_"
		if s.Host != ident.ServiceHost(s.Name) { // a ServiceEntry stands for hosts of its own
			prefix = variableName(s.Host) + "_SERVICE_"
		}
		for i, p := range s.Ports {
			addr := in.Local[model.ServiceRef{Host: s.Host, Port: p.Port}]
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				continue
			}
			if i == 0 {
				v[prefix+"HOST"], v[prefix+"PORT"] = host, port
			}
			if p.Name != "" {
				v[prefix+"PORT_"+variableName(p.Name)] = port
			}
		}
	}
	return v
}

// variableName spells a Kubernetes name as a variable: upper case, every other character an underscore.
func variableName(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, s)
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// expand replaces $(NAME) as Kubernetes does in a container's command: $$ stands for $, and a reference to an
// unknown variable stays as it is.
func expand(s string, v map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
			continue
		case '(':
			if end := strings.IndexByte(s[i:], ')'); end > 0 {
				if val, ok := v[s[i+2:i+end]]; ok {
					b.WriteString(val)
				} else {
					b.WriteString(s[i : i+end+1])
				}
				i += end
				continue
			}
		}
		b.WriteByte('$')
	}
	return b.String()
}

// unknownVariables returns the references $(NAME) of a workload's command that nothing sets.
func unknownVariables(r *model.Run, v map[string]string) []string {
	set := maps.Clone(v)
	for _, e := range r.Env {
		set[e.Name] = ""
	}
	var unknown []string
	for _, arg := range r.Command {
		for rest := arg; ; {
			i := strings.Index(rest, "$(")
			if i < 0 {
				break
			}
			if i > 0 && rest[i-1] == '$' {
				rest = rest[i+2:]
				continue
			}
			rest = rest[i+2:]
			name, after, ok := strings.Cut(rest, ")")
			if !ok {
				break
			}
			if _, ok := set[name]; !ok && variableLike(name) && !slices.Contains(unknown, name) {
				unknown = append(unknown, name)
			}
			rest = after
		}
	}
	return unknown
}

// variableLike reports whether a name is spelled as variables are. A command may be a shell's, with $(date) and $((1+2)).
func variableLike(name string) bool {
	return name != "" && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// command returns the arguments and the environment of a workload's program. The environment is the supervisor's
// own, then ours, then what the Workload says, which may refer to ours and to what stands before it.
func command(r *model.Run, v map[string]string) (args, env []string) {
	set := maps.Clone(v)
	for _, e := range r.Env {
		set[e.Name] = expand(e.Value, set)
	}
	for _, a := range r.Command[1:] {
		args = append(args, expand(a, set))
	}
	merged := make(map[string]string)
	for _, kv := range os.Environ() {
		k, val, _ := strings.Cut(kv, "=")
		merged[k] = val
	}
	// What the user's own shell proxies must not pull mesh traffic out of the mesh.
	for _, k := range []string{"ALL_PROXY", "all_proxy"} {
		delete(merged, k)
	}
	if r.Dir != "" {
		merged["PWD"] = r.Dir // as a shell that goes there sets it; ours is where malha was called
	}
	maps.Copy(merged, set)
	for k, val := range merged {
		env = append(env, k+"="+val)
	}
	sort.Strings(env)
	return args, env
}

// describe names the variables of a workload for a message.
func describe(v map[string]string) string {
	var names []string
	for k := range v {
		if k == "PORT" || strings.HasPrefix(k, "PORT_") {
			names = append(names, fmt.Sprintf("$(%s)", k))
		}
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}
