package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/malha-mesh/malha/internal/inject"
	"github.com/malha-mesh/malha/internal/inject/document"
)

// injection are the flags of verbs that inject.
type injection struct {
	files  []string
	config string // injection.yaml
	image  string
	mesh   string
	adopt  []string
	native bool
}

func (i *injection) flags(cmd *cobra.Command, version string) {
	f := cmd.Flags()
	f.StringVar(&i.config, "config", "", "`FILE` with the settings of injection, as key injection.yaml of ConfigMap malha has them; the other flags change them")
	f.StringVar(&i.image, "image", "", "`IMAGE` of the proxy (default malha.dev/malha-proxy:"+version+")")
	f.StringVar(&i.mesh, "mesh-namespace", "", "`NAMESPACE` of the control plane (default malha-system)")
	f.StringSliceVar(&i.adopt, "adopt", nil, "obey the words of these `MESHES` too: istio, linkerd")
	f.BoolVar(&i.native, "native-sidecars", true, "the proxy is an init container that stays; false for clusters before Kubernetes 1.29")
}

// settings are what the flags say.
func (i *injection) settings(cmd *cobra.Command, s *session) (*inject.Config, error) {
	base := "image: malha.dev/malha-proxy:" + s.version + "\n"
	if i.config != "" {
		files, err := s.readManifests(i.config)
		if err != nil {
			return nil, err
		}
		base = string(files[0].Data)
	}
	c, err := inject.ReadConfig([]byte(base))
	if err != nil {
		return nil, err
	}
	if i.image != "" {
		c.Image, c.Version = i.image, ""
	}
	if i.mesh != "" {
		c.Namespace, c.Control = i.mesh, ""
	}
	for _, a := range i.adopt {
		c.Adopt = append(c.Adopt, inject.Dialect(a))
	}
	if cmd.Flags().Changed("native-sidecars") {
		c.Native = &i.native
	}
	return c.Complete(), c.Check()
}

func (s *session) injectCommand() *cobra.Command {
	var i injection
	cmd := &cobra.Command{
		Use:   "inject -f FILE|DIR|-",
		Short: "Put the proxy into the pods of manifests",
		Long: `Read manifests, put the proxy beside the containers of their pods, and write them to standard output: what the mesh's webhook
does, for those who want to see it or have no webhook. Comments and the order of fields stay, other objects pass as they are. On
standard error stands what was injected, what was not, and why.

A pod that has the label malha.dev/inject: disabled is left alone. A mistake in one of them ends with exit code 1, and nothing
is written.`,
		Example: `  malha inject -f app.yaml | kubectl apply -f -
  kubectl get deployment web -o yaml | malha inject -f - | kubectl apply -f -`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := i.settings(cmd, s)
			if err != nil {
				return err
			}
			c.Always = true
			r := &injectReport{s: s, verb: "injected"}
			return r.rewrite(i.files, func(w *inject.Workload) (inject.Patch, error) {
				result, err := c.Workload(w, inject.Namespace{Name: w.Namespace})
				return r.result(w, result, err)
			})
		},
	}
	i.flags(cmd, s.version)
	cmd.Flags().StringArrayVarP(&i.files, "filename", "f", nil, "`FILE`, folder (with its sub-folders) or - for standard input")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

func (s *session) uninjectCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "uninject -f FILE|DIR|-",
		Short: "Take the proxy out of the pods of manifests",
		Long: `Read manifests, take out of their pods what malha inject or the webhook put into them, and write them to standard output.
Probes and hooks are again what they were.`,
		Example:           `  kubectl get deployment web -o yaml | malha uninject -f - | kubectl apply -f -`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			r := &injectReport{s: s, verb: "uninjected"}
			return r.rewrite(files, func(w *inject.Workload) (inject.Patch, error) {
				p, err := inject.Undo(&w.Meta, &w.Spec)
				switch {
				case err != nil:
					r.line(markBad, red, w, err.Error())
					r.refused++
					return nil, nil
				case p == nil:
					r.line(markWarn, yellow, w, "not uninjected: it is not injected")
					r.left++
					return nil, nil
				}
				r.line(markOK, green, w, "uninjected")
				if w.Meta.Labels[inject.LabelInject] == "enabled" {
					r.s.ui.say("    its label %s: enabled stays: the webhook injects its pods again", inject.LabelInject)
				}
				r.done++
				return p.Below(w.Path), nil
			})
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "`FILE`, folder (with its sub-folders) or - for standard input")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

// injectReport counts what became of workloads, and says it.
type injectReport struct {
	s                           *session
	verb                        string
	dry                         bool // nothing is written
	done, left, refused, others int
	all                         []decision
}

// decision is what becomes of one workload, as -o shows it.
type decision struct {
	Kind      string           `json:"kind"`
	Namespace string           `json:"namespace,omitempty"`
	Name      string           `json:"name"`
	Inject    bool             `json:"inject"` // it would get a proxy, or asks for one and has none
	Code      inject.Code      `json:"code"`   // "already": it has one
	Reason    string           `json:"reason"`
	Problems  []inject.Problem `json:"problems,omitempty"` // why it is refused
	Notes     []string         `json:"notes,omitempty"`
}

// note keeps a decision for -o.
func (r *injectReport) note(w *inject.Workload, result *inject.Result, err error) {
	d := decision{Kind: w.Kind, Namespace: w.Namespace, Name: w.Name, Inject: result.Inject, Code: result.Code, Reason: result.Reason, Notes: result.Notes}
	var refusal *inject.Refusal
	if errors.As(err, &refusal) {
		d.Problems = refusal.Problems
	}
	r.all = append(r.all, d)
}

func (r *injectReport) line(mark string, tone style, w *inject.Workload, text string) {
	name := w.Name
	if w.Namespace != "" {
		name = w.Namespace + "/" + name
	}
	r.s.ui.say("%s %s %s: %s", paint(r.s.ui.errColor, tone, mark), w.Kind, name, text)
}

// result says what became of one.
func (r *injectReport) result(w *inject.Workload, result *inject.Result, err error) (inject.Patch, error) {
	r.note(w, result, err)
	var refusal *inject.Refusal
	switch {
	case errors.As(err, &refusal):
		r.refused++
		r.line(markBad, red, w, result.Reason)
		for _, p := range refusal.Problems {
			r.s.ui.say("    %s: %s", p.Path, p.Message)
			if p.Hint != "" {
				r.s.ui.say("    %s%s", paint(r.s.ui.errColor, dim, "fix: "), p.Hint)
			}
		}
		return nil, nil
	case err != nil:
		return nil, err
	case !result.Inject:
		r.left++
		r.line(markWarn, yellow, w, "not injected: "+result.Reason)
	default:
		r.done++
		r.line(markOK, green, w, "injected")
	}
	for _, n := range result.Notes {
		r.s.ui.say("    %s %s", paint(r.s.ui.errColor, yellow, markWarn), n)
	}
	return result.Patch, nil
}

// rewrite edits the workloads of files, and writes all of them when nothing in them is wrong.
func (r *injectReport) rewrite(paths []string, edit func(*inject.Workload) (inject.Patch, error)) error {
	var out bytes.Buffer
	for _, p := range paths {
		files, err := r.s.readManifests(p)
		if err != nil {
			return err
		}
		for _, f := range files {
			b, err := document.Stream(f.Data, func(object []byte) (inject.Patch, error) {
				w, err := inject.ReadWorkload(object)
				if err != nil {
					return nil, err
				}
				if w == nil {
					r.others++
					return nil, nil
				}
				return edit(w)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", shortPath(f.Name), err)
			}
			join(&out, b)
		}
	}
	r.s.ui.say("%d %s, %d left alone, %d with a mistake; %d other objects", r.done, r.verb, r.left, r.refused, r.others)
	if r.refused > 0 {
		if !r.dry {
			r.s.ui.say("nothing was written")
		}
		return exitCode(1)
	}
	if r.dry {
		return nil
	}
	_, err := r.s.ui.out.Write(out.Bytes())
	return err
}

// join adds a file to a stream of documents.
func join(out *bytes.Buffer, b []byte) {
	if len(bytes.TrimSpace(b)) == 0 {
		return
	}
	if out.Len() > 0 && !bytes.HasPrefix(b, []byte("---")) {
		if !strings.HasSuffix(out.String(), "\n") {
			out.WriteByte('\n')
		}
		out.WriteString("---\n")
	}
	out.Write(b)
}
