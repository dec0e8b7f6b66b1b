package admin

import (
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/telemetry"
)

// endpoints returns every path. The names are those of Envoy's admin interface and Istio's agent where the meaning is
// the same.
func (s *Server) endpoints() map[string]endpoint {
	o := &s.o
	all := map[string]endpoint{
		"/healthz/live": {open: true, media: text, help: "200 while the process runs", serve: func(w io.Writer, _ string) error {
			_, err := io.WriteString(w, "live\n")
			return err
		}},
		"/server_info": {media: data, help: "version", serve: func(w io.Writer, _ string) error {
			return writeJSON(w, map[string]string{"version": o.Version})
		}},
	}
	if o.Ready != nil {
		all["/healthz/ready"] = endpoint{open: true, media: text, help: "200 when the proxy can take traffic, else 503 and why", serve: func(w io.Writer, _ string) error {
			if err := o.Ready(); err != nil {
				return &answer{503, "not ready: " + err.Error()}
			}
			_, err := io.WriteString(w, "ready\n")
			return err
		}}
	}
	if o.Metrics != nil {
		metrics := endpoint{open: true, media: telemetry.ContentType, help: "metrics in the Prometheus text format", serve: func(w io.Writer, _ string) error {
			_, err := o.Metrics.WriteTo(w)
			return err
		}}
		all["/stats/prometheus"], all["/metrics"] = metrics, metrics
	}
	if o.Plan != nil {
		all["/config_dump"] = endpoint{media: data, help: "the plan in force, without private keys", serve: func(w io.Writer, _ string) error {
			p := o.Plan()
			if p == nil {
				return &answer{404, "no plan is in force yet"}
			}
			return writeJSON(w, p.Redacted())
		}}
	}
	show := func(path, help string, f func() any) {
		if f != nil {
			all[path] = endpoint{media: data, help: help, serve: func(w io.Writer, _ string) error { return writeJSON(w, f()) }}
		}
	}
	show("/listeners", "listeners with their addresses and connections", o.Listeners)
	show("/clusters", "clusters, their endpoints, health and counters", o.Clusters)
	if o.Certs != nil {
		all["/certs"] = endpoint{media: data, help: "the workload certificate and its chain", serve: s.certs}
	}
	if o.Level != nil {
		all["/logging"] = endpoint{command: true, media: text, help: "POST ?level=debug|info|warn|error sets the log level", serve: func(w io.Writer, query string) error {
			l, err := level(query)
			if err != nil {
				return err
			}
			o.Level.Set(l)
			o.Log.Info("log level set", "level", l.String())
			_, err = fmt.Fprintln(w, "level is", l)
			return err
		}}
	}
	command := func(path, help, done string, f func()) {
		if f != nil {
			all[path] = endpoint{command: true, media: text, help: help, serve: func(w io.Writer, _ string) error {
				o.Log.Info("commanded by the admin port", "command", path)
				f()
				_, err := io.WriteString(w, done+"\n")
				return err
			}}
		}
	}
	command("/drain", "POST: finish what is open, take nothing new, stay", "draining", o.Drain)
	command("/quitquitquit", "POST: drain and exit", "exiting", o.Quit)
	all["/"] = endpoint{media: text, help: "this list", serve: func(w io.Writer, _ string) error {
		for _, p := range slices.Sorted(maps.Keys(all)) {
			if _, err := fmt.Fprintf(w, "%-20s %s\n", p, all[p].help); err != nil {
				return err
			}
		}
		return nil
	}}
	return all
}

// certificate is what /certs shows of one certificate.
type certificate struct {
	Subject   string    `json:"subject,omitempty"`
	URIs      []string  `json:"uris,omitempty"`
	Issuer    string    `json:"issuer,omitempty"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

func (s *Server) certs(w io.Writer, _ string) error {
	c := s.o.Certs.Current()
	if c == nil {
		return &answer{404, "there is no certificate yet"}
	}
	out := struct {
		Identity string        `json:"identity"`
		Node     string        `json:"node"`
		Chain    []certificate `json:"chain"`
	}{Identity: c.Identity.URI(), Node: c.Node.String()}
	for _, der := range c.Certificate.Certificate {
		x, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate in force can't be parsed: %w", err)
		}
		e := certificate{Subject: x.Subject.String(), Issuer: x.Issuer.String(), Serial: x.SerialNumber.Text(16), NotBefore: x.NotBefore, NotAfter: x.NotAfter}
		for _, u := range x.URIs {
			e.URIs = append(e.URIs, u.String())
		}
		out.Chain = append(out.Chain, e)
	}
	return writeJSON(w, out)
}
