package ctl

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/malha-mesh/malha/internal/check"
	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/plan"
)

// description is what `malha describe` says of a pod or a service, read top to bottom.
type description struct {
	Kind      string     `json:"kind"`
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	Proxy     string     `json:"proxy"`              // whether there is one, and how it is
	Identity  string     `json:"identity,omitempty"` // of the pod
	Services  []string   `json:"services,omitempty"` // that select the pod
	Pods      []string   `json:"pods,omitempty"`     // behind the service
	Seen      string     `json:"seenBy,omitempty"`   // the proxy whose plan Routing is of
	Inbound   []doorText `json:"inbound,omitempty"`
	Routing   []ruleText `json:"routing,omitempty"`
	Clusters  []ruleText `json:"clusters,omitempty"`
	Warnings  []string   `json:"warnings,omitempty"`
}

// doorText is a port of a pod, as its proxy guards it.
type doorText struct {
	Port     string   `json:"port"`
	Protocol string   `json:"protocol"`
	TLS      string   `json:"tls"`
	Policies []string `json:"policies,omitempty"`
	From     string   `json:"from,omitempty"`
}

// ruleText is a rule for a service.
type ruleText struct {
	Host  string `json:"host"`
	Match string `json:"match,omitempty"`
	To    string `json:"to,omitempty"`
	From  string `json:"from,omitempty"`
}

func (s *session) describe() *cobra.Command {
	var k kube
	out := format("table")
	cmd := &cobra.Command{
		Use:   "describe pod|service NAME",
		Short: "Say what the mesh does with a pod or a service of the cluster",
		Long: `For a pod: whether it has a proxy, its identity, the services that select it, and for each port what its proxy asks of
callers, with the PeerAuthentication and policies that say so. For a service: its pods, and the rules by which requests
for it are routed, first match first, with the object each comes from. What looks like a mistake is a warning.`,
		Example: `  malha describe pod reviews-v1-7f66 -n shop
  malha describe service reviews.shop -o yaml`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			kind := cluster.Pods
			switch {
			case len(args) == 0:
				return []string{"pod", "service"}, cobra.ShellCompDirectiveNoFileComp
			case args[0] == "service":
				kind = cluster.Services
			}
			return s.completeObjects(&k, func(string) (cluster.Kind, string) { return kind, "" })(cmd, args[1:], prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.open(&k)
			if err != nil {
				return err
			}
			var d *description
			ns, name := splitPod(args[1], c.Namespace)
			switch args[0] {
			case "pod", "pods", "po":
				if ns, name, err = findPod(cmd.Context(), c, args[1]); err != nil {
					return err
				}
				d, err = describePod(cmd.Context(), c, ns, name)
			case "service", "services", "svc":
				d, err = describeService(cmd.Context(), c, ns, name)
			default:
				return fmt.Errorf("cannot describe a %q; there is pod and service", args[0])
			}
			if err != nil {
				return err
			}
			if out != "table" {
				return out.encode(s.ui.out, d)
			}
			s.showDescription(d)
			return nil
		},
	}
	clusterFlags(cmd, &k, true)
	addFormat(cmd, &out)
	return cmd
}

func describePod(ctx context.Context, c *cluster.Cluster, ns, name string) (*description, error) {
	pod, err := cluster.Get[core.Pod](ctx, c, cluster.Pods, ns, name)
	if cluster.IsNotFound(err) {
		return nil, fmt.Errorf("there is no pod %s in namespace %s; name another with -n", name, ns)
	}
	if err != nil {
		return nil, err
	}
	d := &description{Kind: "Pod", Namespace: ns, Name: name}
	services, err := cluster.List[core.Service](ctx, c, cluster.Services, ns, "")
	if err != nil {
		return nil, err
	}
	for i := range services {
		if sel := services[i].Spec.Selector; len(sel) > 0 && labels.SelectorFromSet(sel).Matches(labels.Set(pod.Labels)) {
			d.Services = append(d.Services, serviceText(&services[i]))
			d.Warnings = append(d.Warnings, doubts(&services[i], pod)...)
		}
	}
	if len(d.Services) == 0 {
		d.Warnings = append(d.Warnings, "no Service selects it: nobody reaches it by a name, and DestinationRules do not apply to it")
	}
	d.Proxy = proxyText(pod)
	if _, has := check.Proxy(pod); !has || pod.Status.Phase != core.PodRunning {
		return d, nil
	}
	p, err := proxyPlan(ctx, c, ns, name)
	if err != nil {
		d.Warnings = append(d.Warnings, err.Error())
		return d, nil
	}
	d.Identity = p.Node.Identity.URI()
	d.Inbound = doors(p)
	return d, nil
}

func proxyText(p *core.Pod) string {
	status, has := check.Proxy(p)
	switch {
	case !has && p.Spec.HostNetwork:
		return "none: the pod uses the network of its node, where nothing can be captured for it alone"
	case !has:
		return "none; `malha check-inject " + p.Name + " -n " + p.Namespace + "` says why"
	case status == nil || !status.Ready:
		return "not ready: " + cluster.Trouble(p)
	}
	return "ready, " + status.Image
}

func serviceText(s *core.Service) string {
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, strings.TrimSpace(fmt.Sprintf("%d %s", p.Port, p.Name)))
	}
	return s.Name + " (" + strings.Join(ports, ", ") + ")"
}

// doubts are what looks like a mistake about a service and a pod of it.
func doubts(s *core.Service, pod *core.Pod) []string {
	var out []string
	for _, p := range s.Spec.Ports {
		if p.Protocol == core.ProtocolUDP || p.Protocol == core.ProtocolSCTP {
			out = append(out, fmt.Sprintf("port %d of Service %s is %s, which does not go through the mesh", p.Port, s.Name, p.Protocol))
			continue
		}
		if name := p.TargetPort.StrVal; name != "" {
			known := slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c core.Container) bool {
				return slices.ContainsFunc(c.Ports, func(cp core.ContainerPort) bool { return cp.Name == name })
			})
			if !known {
				out = append(out, fmt.Sprintf("port %d of Service %s goes to the port named %q, which no container of the pod has", p.Port, s.Name, name))
			}
		}
	}
	return out
}

// doors are the ports that a plan guards.
func doors(p *plan.Plan) []doorText {
	var out []doorText
	for i := range p.Listeners {
		l := &p.Listeners[i]
		if l.Direction == plan.Outbound {
			continue
		}
		d := doorText{Port: "any other", Protocol: l.Protocol.String(), TLS: string(l.TLS), From: l.Origin.String()}
		if l.Port != 0 {
			d.Port = strconv.Itoa(l.Port)
		}
		if l.Direction == plan.Edge {
			d.TLS = "none"
			if n := len(l.ServerNames); n > 0 {
				d.TLS = fmt.Sprintf("by %d server names", n)
			}
		}
		for _, name := range l.Policies {
			text := name
			for j := range p.Policies {
				if pol := &p.Policies[j]; pol.Name == name {
					text = string(pol.Action) + " " + pol.Origin.String()
					if pol.DryRun {
						text += " (dry run)"
					}
				}
			}
			d.Policies = append(d.Policies, text)
		}
		out = append(out, d)
	}
	slices.SortStableFunc(out, func(a, b doorText) int { return portRank(a.Port) - portRank(b.Port) })
	return out
}

func portRank(s string) int {
	if n, err := strconv.Atoi(s); err == nil {
		return n
	}
	return 1 << 16
}

func describeService(ctx context.Context, c *cluster.Cluster, ns, name string) (*description, error) {
	svc, err := cluster.Get[core.Service](ctx, c, cluster.Services, ns, name)
	if cluster.IsNotFound(err) {
		return nil, fmt.Errorf("there is no Service %s in namespace %s; name another with -n", name, ns)
	}
	if err != nil {
		return nil, err
	}
	d := &description{Kind: "Service", Namespace: ns, Name: name}
	d.Services = []string{serviceText(svc)}
	pods, err := behind(ctx, c, svc)
	if err != nil {
		return nil, err
	}
	var viewer *core.Pod
	bare := 0
	for i := range pods {
		p := &pods[i]
		d.Pods = append(d.Pods, p.Name+": "+proxyText(p))
		d.Warnings = append(d.Warnings, doubts(svc, p)...)
		status, has := check.Proxy(p)
		if !has {
			bare++
		} else if viewer == nil && status != nil && status.Ready {
			viewer = p
		}
	}
	slices.Sort(d.Warnings)
	d.Warnings = slices.Compact(d.Warnings)
	d.Proxy = fmt.Sprintf("%d of %d pods have one", len(pods)-bare, len(pods))
	if len(pods) == 0 {
		d.Warnings = append(d.Warnings, "it has no endpoints: requests for it are answered with 503")
	} else if bare > 0 && bare < len(pods) {
		d.Warnings = append(d.Warnings, "some of its pods have no proxy: requests that reach them are neither encrypted nor checked")
	}
	if viewer == nil {
		if viewer, err = anyProxy(ctx, c, ns); err != nil {
			return nil, err
		}
	}
	if viewer == nil {
		d.Warnings = append(d.Warnings, "no pod of its namespace has a proxy that could say how requests for it are routed")
		return d, nil
	}
	p, err := proxyPlan(ctx, c, viewer.Namespace, viewer.Name)
	if err != nil {
		d.Warnings = append(d.Warnings, err.Error())
		return d, nil
	}
	d.Seen = viewer.Namespace + "/" + viewer.Name
	host := name + "." + ns + "."
	for i := range p.Routes {
		for j := range p.Routes[i].Hosts {
			h := &p.Routes[i].Hosts[j]
			if !strings.HasPrefix(h.Name, host) {
				continue
			}
			for n := range h.Routes {
				r := &h.Routes[n]
				d.Routing = append(d.Routing, ruleText{h.Name, matchText(&r.Match), actionText(r), r.Origin.String()})
			}
		}
	}
	for i := range p.Clusters {
		if cl := &p.Clusters[i]; strings.HasPrefix(cl.Host, host) {
			d.Clusters = append(d.Clusters, ruleText{Host: cl.Name, To: string(cmp.Or(cl.Balancer, plan.LeastRequest)) + ", " + upstreamText(cl), From: cl.Origin.String()})
		}
	}
	return d, nil
}

// upstreamText says how endpoints are called.
func upstreamText(cl *plan.Cluster) string {
	switch {
	case cl.Originate != nil:
		return "TLS of its own"
	case cl.TLS == plan.TLSOff:
		return "in plain text"
	case cl.TLS == plan.TLSMutual:
		return "mutual TLS"
	}
	return "mutual TLS with pods that have a proxy"
}

// behind returns the pods of a service, as its EndpointSlices have them.
func behind(ctx context.Context, c *cluster.Cluster, svc *core.Service) ([]core.Pod, error) {
	found, err := cluster.List[discovery.EndpointSlice](ctx, c, cluster.Slices, svc.Namespace, "kubernetes.io/service-name="+svc.Name)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range found {
		for _, e := range s.Endpoints {
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" && !slices.Contains(names, e.TargetRef.Name) {
				names = append(names, e.TargetRef.Name)
			}
		}
	}
	slices.Sort(names)
	var out []core.Pod
	for _, n := range names {
		p, err := cluster.Get[core.Pod](ctx, c, cluster.Pods, svc.Namespace, n)
		if cluster.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, *p)
	}
	return out, nil
}

// anyProxy returns a pod of a namespace whose proxy is ready.
func anyProxy(ctx context.Context, c *cluster.Cluster, ns string) (*core.Pod, error) {
	pods, err := cluster.List[core.Pod](ctx, c, cluster.Pods, ns, "")
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if status, _ := check.Proxy(&pods[i]); status != nil && status.Ready {
			return &pods[i], nil
		}
	}
	return nil, nil
}

func (s *session) showDescription(d *description) {
	w := s.ui.out
	head := func(text string) { fmt.Fprintln(w, paint(s.ui.outColor, bold, text)) }
	head(d.Kind + " " + d.Namespace + "/" + d.Name)
	t := &table{}
	for _, r := range [][2]string{{"proxy", d.Proxy}, {"identity", d.Identity}, {"services", strings.Join(d.Services, ", ")}} {
		if r[1] != "" {
			t.row(cell{"  " + r[0], dim}, plain(r[1]))
		}
	}
	for _, p := range d.Pods {
		t.row(cell{"  pod", dim}, plain(p))
	}
	t.write(w, s.ui.outColor)
	if len(d.Inbound) > 0 {
		head("Ports")
		t := &table{}
		for _, p := range d.Inbound {
			t.row(plain("  "+p.Port), plain(p.Protocol), plain("mutual TLS: "+dash(p.TLS)), cell{p.From, dim})
			for _, pol := range p.Policies {
				t.row(plain(""), plain("policy"), plain(pol))
			}
		}
		t.write(w, s.ui.outColor)
	}
	for _, list := range []struct {
		title string
		rules []ruleText
	}{{"Routing, first match first, as " + d.Seen + " has it", d.Routing}, {"How it is called", d.Clusters}} {
		if len(list.rules) == 0 {
			continue
		}
		head(list.title)
		t := &table{}
		for _, r := range list.rules {
			if r.Match == "" {
				t.row(plain("  "+r.Host), plain(r.To), cell{r.From, dim})
			} else {
				t.row(plain("  "+r.Host), plain(r.Match), plain("→ "+r.To), cell{r.From, dim})
			}
		}
		t.write(w, s.ui.outColor)
	}
	for _, text := range d.Warnings {
		fmt.Fprintf(w, "%s %s\n", paint(s.ui.outColor, yellow, markWarn), text)
	}
}
