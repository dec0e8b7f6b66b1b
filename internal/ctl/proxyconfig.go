package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// adminPort is where a proxy answers questions, on its loopback interface.
const adminPort = 15000

// parts of a proxy's configuration, in the order of a request.
var parts = []string{"listeners", "routes", "clusters", "endpoints", "policies", "certs", "all"}

func (s *session) proxyConfig() *cobra.Command {
	var (
		k    kube
		host string
		port int
	)
	out := format("table")
	cmd := &cobra.Command{
		Use:     "proxy-config POD [" + strings.Join(parts, "|") + "]",
		Aliases: []string{"pc"},
		Short:   "Show what the proxy of a pod runs from",
		Long: `Ask the proxy of a pod for the plan that it runs from, and show it with, for each entry, the object and rule that made it.
Without a part, the summary of all of them. The answer is the proxy's own, not what the control plane has for it: for
that see proxy-status.`,
		Example: `  malha proxy-config reviews-v1-7f66 -n shop
  malha proxy-config deploy/reviews-v1.shop routes --host ratings
  malha proxy-config reviews-v1-7f66.shop all -o json`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return parts, cobra.ShellCompDirectiveNoFileComp
			}
			return s.completePods(&k)(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			part := ""
			if len(args) == 2 {
				if part = args[1]; !slices.Contains(parts, part) {
					return fmt.Errorf("there is no part %q; there are %s", part, strings.Join(parts, ", "))
				}
			}
			c, err := s.open(&k)
			if err != nil {
				return err
			}
			ns, pod, err := findPod(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if part == "certs" {
				return s.proxyCerts(cmd.Context(), c, ns, pod, out)
			}
			p, err := proxyPlan(cmd.Context(), c, ns, pod)
			if err != nil {
				return err
			}
			narrow(p, host, port)
			return s.showPlan(p, part, out)
		},
	}
	clusterFlags(cmd, &k, true)
	cmd.Flags().StringVar(&host, "host", "", "only what is for hosts that contain `TEXT`")
	cmd.Flags().IntVar(&port, "port", 0, "only what is for this service `PORT`")
	addFormat(cmd, &out)
	return cmd
}

// proxyPlan asks a proxy for its plan.
func proxyPlan(ctx context.Context, c *cluster.Cluster, namespace, pod string) (*plan.Plan, error) {
	data, err := c.Ask(ctx, namespace, pod, adminPort, "/config_dump")
	if err != nil {
		return nil, fmt.Errorf("%w; `malha describe pod %s.%s` says whether the pod has a proxy", err, pod, namespace)
	}
	p := &plan.Plan{}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("the plan of %s/%s is not readable: %w; is its proxy of another version? see `malha version`", namespace, pod, err)
	}
	return p, nil
}

// narrow leaves in p what is for a host and a port.
func narrow(p *plan.Plan, host string, port int) {
	other := func(h string, at int) bool {
		return host != "" && !strings.Contains(h, host) || port != 0 && at != port
	}
	if host == "" && port == 0 {
		return
	}
	p.Listeners = slices.DeleteFunc(p.Listeners, func(l plan.Listener) bool {
		if !l.Forward {
			return other(l.Host, l.Port)
		}
		return port != 0 && !slices.ContainsFunc(l.Ports, func(f plan.ForwardPort) bool { return f.Port == port })
	})
	var tables []plan.RouteTable
	for _, t := range p.Routes {
		t.Hosts = slices.DeleteFunc(slices.Clone(t.Hosts), func(v plan.VirtualHost) bool {
			at := v.Name[strings.LastIndexByte(v.Name, ':')+1:]
			return host != "" && !strings.Contains(v.Name, host) && !slices.ContainsFunc(v.Domains, func(d string) bool { return strings.Contains(d, host) }) ||
				port != 0 && at != strconv.Itoa(port)
		})
		if len(t.Hosts) > 0 {
			tables = append(tables, t)
		}
	}
	p.Routes = tables
	kept := map[string]bool{}
	p.Clusters = slices.DeleteFunc(p.Clusters, func(c plan.Cluster) bool {
		kept[c.Name] = !other(c.Host, c.Port)
		return !kept[c.Name]
	})
	p.Endpoints = slices.DeleteFunc(p.Endpoints, func(e plan.Endpoints) bool { return !kept[e.Cluster] })
}

// showPlan prints a part of a plan; "" is the summary.
func (s *session) showPlan(p *plan.Plan, part string, out format) error {
	if out != "table" {
		var v any = p
		switch part {
		case "listeners":
			v = p.Listeners
		case "routes":
			v = p.Routes
		case "clusters":
			v = p.Clusters
		case "endpoints":
			v = p.Endpoints
		case "policies":
			v = p.Policies
		}
		return out.encode(s.ui.out, v)
	}
	if part == "" {
		s.planSummary(p)
		return nil
	}
	show := map[string]func(*plan.Plan) *table{"listeners": listenerTable, "routes": routeTable, "clusters": clusterTable, "endpoints": endpointTable, "policies": policyTable}
	for i, name := range parts[:5] {
		if part != "all" && part != name {
			continue
		}
		if part == "all" {
			if i > 0 {
				fmt.Fprintln(s.ui.out)
			}
			fmt.Fprintln(s.ui.out, paint(s.ui.outColor, bold, name))
		}
		show[name](p).write(s.ui.out, s.ui.outColor)
	}
	return nil
}

func (s *session) planSummary(p *plan.Plan) {
	rules, endpoints := 0, 0
	for _, t := range p.Routes {
		for _, h := range t.Hosts {
			rules += len(h.Routes)
		}
	}
	for _, e := range p.Endpoints {
		endpoints += len(e.Endpoints)
	}
	t := &table{}
	for _, r := range [][2]string{
		{"proxy", p.Node.Name.String() + " (" + string(p.Node.Role) + ")"},
		{"identity", p.Node.Identity.URI()},
		{"locality", dash(p.Node.Locality)},
		{"captures", capturing(p.Capture)},
		{"listeners", strconv.Itoa(len(p.Listeners))},
		{"routes", fmt.Sprintf("%d rules in %d tables", rules, len(p.Routes))},
		{"clusters", fmt.Sprintf("%d with %d endpoints", len(p.Clusters), endpoints)},
		{"policies", strconv.Itoa(len(p.Policies))},
	} {
		t.row(cell{r[0], dim}, plain(r[1]))
	}
	t.write(s.ui.out, s.ui.outColor)
}

func capturing(c *plan.Capture) string {
	if c == nil {
		return "nothing"
	}
	var what []string
	for _, d := range [][2]string{{"inbound", c.Inbound}, {"outbound", c.Outbound}, {"DNS", c.DNS}} {
		if d[1] != "" {
			what = append(what, d[0]+" at "+d[1])
		}
	}
	return dash(strings.Join(what, ", "))
}

func made(o ident.Origin) cell { return cell{dash(o.String()), dim} }

func listenerTable(p *plan.Plan) *table {
	t := &table{}
	t.header("LISTENER", "DIRECTION", "ADDRESS", "PORT", "PROTOCOL", "TLS", "POLICIES", "FROM")
	for i := range p.Listeners {
		l := &p.Listeners[i]
		tls := string(l.TLS)
		if len(l.ServerNames) > 0 {
			tls = fmt.Sprintf("by %d names", len(l.ServerNames))
		}
		port := "any"
		if l.Port != 0 {
			port = strconv.Itoa(l.Port)
		}
		address := l.Bind
		if address == "" {
			address = "captured"
		}
		t.row(plain(l.Name), plain(string(l.Direction)), plain(address), plain(port), plain(l.Protocol.String()), plain(dash(tls)), plain(dash(strings.Join(l.Policies, ","))), made(l.Origin))
	}
	return t
}

func routeTable(p *plan.Plan) *table {
	t := &table{}
	t.header("TABLE", "HOST", "RULE", "MATCH", "TO", "FROM")
	for i := range p.Routes {
		r := &p.Routes[i]
		for j := range r.Hosts {
			h := &r.Hosts[j]
			for n := range h.Routes {
				rule := &h.Routes[n]
				t.row(plain(r.Name), plain(h.Name), plain(dash(rule.Name)), plain(matchText(&rule.Match)), plain(actionText(rule)), made(rule.Origin))
			}
		}
	}
	return t
}

// matchText says which requests a rule is for.
func matchText(m *plan.Match) string {
	var parts []string
	add := func(name string, v fmt.Stringer, set bool) {
		if set {
			parts = append(parts, name+" "+v.String())
		}
	}
	add("path", m.Path, m.Path != nil)
	add("method", m.Method, m.Method != nil)
	add("scheme", m.Scheme, m.Scheme != nil)
	add("authority", m.Authority, m.Authority != nil)
	for _, list := range []struct {
		name   string
		fields []plan.FieldMatch
	}{{"header", m.Headers}, {"query", m.Query}} {
		for _, f := range list.fields {
			not := ""
			if f.Invert {
				not = "not "
			}
			parts = append(parts, not+list.name+" "+f.Name+" "+f.Value.String())
		}
	}
	if m.Cond != nil {
		parts = append(parts, "condition")
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, ", ")
}

// actionText says what a rule does with them.
func actionText(r *plan.Route) string {
	switch {
	case r.Redirect != nil:
		return fmt.Sprintf("redirect %d", r.Redirect.Status)
	case r.Direct != nil:
		return fmt.Sprintf("answer %d", r.Direct.Status)
	}
	return destinationsText(r.Forward)
}

func destinationsText(all []plan.Destination) string {
	total := uint32(0)
	for _, d := range all {
		total += d.Weight
	}
	var to []string
	for _, d := range all {
		name := d.Cluster
		switch {
		case d.Status != 0:
			name = fmt.Sprintf("answer %d", d.Status)
		case d.Redirect != nil:
			name = fmt.Sprintf("redirect %d", d.Redirect.Status)
		}
		if len(all) > 1 && total > 0 {
			name = percent(float64(d.Weight)/float64(total)) + " " + name
		}
		to = append(to, name)
	}
	return dash(strings.Join(to, ", "))
}

func clusterTable(p *plan.Plan) *table {
	size := map[string]int{}
	for _, e := range p.Endpoints {
		size[e.Cluster] = len(e.Endpoints)
	}
	t := &table{}
	t.header("CLUSTER", "PROTOCOL", "BALANCER", "TLS", "ENDPOINTS", "FROM")
	for i := range p.Clusters {
		c := &p.Clusters[i]
		n := strconv.Itoa(size[c.Name])
		if c.Discovery != plan.Given {
			n += " (" + string(c.Discovery) + ")"
		}
		tls := string(c.TLS)
		if c.Originate != nil {
			tls = "originate"
		}
		t.row(plain(c.Name), plain(c.Protocol.String()), plain(dash(string(c.Balancer))), plain(dash(tls)), plain(n), made(c.Origin))
	}
	return t
}

func endpointTable(p *plan.Plan) *table {
	t := &table{}
	t.header("CLUSTER", "ADDRESS", "WORKLOAD", "IDENTITY", "LOCALITY")
	for _, set := range p.Endpoints {
		for _, e := range set.Endpoints {
			id := "-"
			if !e.Identity.IsZero() {
				id = e.Identity.URI()
			}
			t.row(plain(set.Cluster), plain(e.Address), plain(dash(e.Workload.Workload)), plain(id), plain(dash(e.Locality)))
		}
	}
	return t
}

func policyTable(p *plan.Plan) *table {
	t := &table{}
	t.header("POLICY", "ACTION", "RULES", "DRY RUN", "FROM")
	for _, pol := range p.Policies {
		t.row(plain(pol.Name), plain(string(pol.Action)), plain(strconv.Itoa(len(pol.Rules))), plain(strconv.FormatBool(pol.DryRun)), made(pol.Origin))
	}
	return t
}

// proxyCertificates is what /certs of a proxy says.
type proxyCertificates struct {
	Identity string `json:"identity"`
	Node     string `json:"node"`
	Chain    []struct {
		Subject   string    `json:"subject,omitempty"`
		URIs      []string  `json:"uris,omitempty"`
		Issuer    string    `json:"issuer,omitempty"`
		Serial    string    `json:"serial"`
		NotBefore time.Time `json:"notBefore"`
		NotAfter  time.Time `json:"notAfter"`
	} `json:"chain"`
}

func (s *session) proxyCerts(ctx context.Context, c *cluster.Cluster, ns, pod string, out format) error {
	data, err := c.Ask(ctx, ns, pod, adminPort, "/certs")
	if err != nil {
		return err
	}
	certs := &proxyCertificates{}
	if err := json.Unmarshal(data, certs); err != nil {
		return fmt.Errorf("the certificates of %s/%s are not readable: %w", ns, pod, err)
	}
	if out != "table" {
		return out.encode(s.ui.out, certs)
	}
	t := &table{}
	t.header("CERTIFICATE", "ISSUER", "SERIAL", "VALID FROM", "EXPIRES IN")
	for _, x := range certs.Chain {
		name := x.Subject
		if len(x.URIs) > 0 {
			name = strings.Join(x.URIs, ",")
		}
		t.row(plain(dash(name)), plain(dash(x.Issuer)), plain(x.Serial), plain(x.NotBefore.Format(time.RFC3339)), plain(until(time.Now(), x.NotAfter)))
	}
	t.write(s.ui.out, s.ui.outColor)
	return nil
}
