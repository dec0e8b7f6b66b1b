package file

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/config/core"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// maxSecret is the largest file of certificates that is read, in bytes.
const maxSecret = 1 << 20

// ReadSecrets adds the Secrets that objects name by the paths of files (manifest.FileSecret). One that cannot be read, or used,
// stays as it is in before, where a configuration before this one has it. Nothing that stands in a file is ever in a diagnostic.
func ReadSecrets(cfg *model.Config, before []model.Secret) []model.Diagnostic {
	ds, _ := readSecrets(cfg, before)
	return ds
}

// readSecrets is ReadSecrets; it returns the files that it read too, by name.
func readSecrets(cfg *model.Config, before []model.Secret) (ds []model.Diagnostic, read []content) {
	byName := map[string]content{}
	open := func(name string) content {
		c, ok := byName[name]
		if !ok {
			c = readContent(name, true)
			byName[name] = c
		}
		return c
	}
	have := map[string]bool{}
	for i := range cfg.Secrets {
		have[cfg.Secrets[i].Secret.Name] = true
	}
	for _, use := range fileSecrets(cfg) {
		if have[use.name] {
			continue
		}
		have[use.name] = true
		paths := strings.Split(strings.TrimPrefix(use.name, manifest.FileSecretPrefix), ",")
		s := model.Secret{Secret: plan.Secret{Name: use.name, Origin: use.origin}}
		s.Meta.Origin = use.origin
		problem := func(hint, format string, args ...any) {
			ds = append(ds, secretProblem(use.origin, fmt.Sprintf(format, args...), hint))
		}
		old := slices.IndexFunc(before, func(b model.Secret) bool { return b.Secret.Name == use.name })
		bad := false
		for j, p := range paths {
			c := open(p)
			if c.err != nil {
				bad = true
				problem("check the path: it is relative to the file of the object", "cannot read %s: %s", p, cause(c.err))
				continue
			}
			switch {
			case len(paths) == 1:
				s.Authorities = c.data
			case j == 0:
				s.Certificate = c.data
			case j == 1:
				s.Key = c.data
			}
		}
		if !bad {
			if why := core.SecretProblem(&s.Secret); why != "" {
				bad = true
				problem("put PEM into them: the certificate chain, leaf first, and its private key without a passphrase", "%s cannot be used: %s", strings.Join(paths, " and "), why)
			}
		}
		switch {
		case !bad:
			cfg.Secrets = append(cfg.Secrets, s)
		case old >= 0:
			cfg.Secrets = append(cfg.Secrets, before[old])
			ds = append(ds, model.Diagnostic{
				Code: manifest.CodeGaveWay, Severity: model.Warning, Origin: use.origin,
				Message: "what was read from " + strings.Join(paths, " and ") + " before keeps serving", Hint: "correct the files",
			})
		}
	}
	for _, c := range byName {
		read = append(read, c)
	}
	slices.SortFunc(read, func(a, b content) int { return cmp.Compare(a.name, b.name) })
	return ds, read
}

func secretProblem(at ident.Origin, message, hint string) model.Diagnostic {
	return model.Diagnostic{Code: manifest.CodeSecret, Severity: model.Error, Origin: at, Message: message, Hint: hint}
}

func cause(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return err.Error()
}

// readContent reads one file, or with read unset only looks at it. What cannot be read is remembered: when it can, that is a
// change.
func readContent(name string, read bool) content {
	c := content{name: name}
	info, err := os.Stat(name)
	if err != nil {
		c.err = err
		return c
	}
	c.size, c.when = info.Size(), info.ModTime().UnixNano()
	switch {
	case !info.Mode().IsRegular():
		c.err = errors.New("not a file")
	case c.size > maxSecret:
		c.err = fmt.Errorf("it has %d bytes, at most %d are read", c.size, maxSecret)
	case read:
		c.data, c.err = readFile(name)
	}
	return c
}

// attach adds the files that are named besides the manifests, as they are now, to those that were read already.
func (s *snapshot) attach(names []string, read bool) {
	have := map[string]bool{}
	for _, c := range s.attached {
		have[c.name] = true
	}
	for _, n := range names {
		if !have[n] {
			have[n] = true
			s.attached = append(s.attached, readContent(n, read))
		}
	}
	slices.SortFunc(s.attached, func(a, b content) int { return cmp.Compare(a.name, b.name) })
	s.watchAttached()
}

// SecretFiles returns the files of certificates that objects name.
func SecretFiles(cfg *model.Config) []string {
	var out []string
	for _, use := range fileSecrets(cfg) {
		out = append(out, strings.Split(strings.TrimPrefix(use.name, manifest.FileSecretPrefix), ",")...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Follow has changes of files told that objects from elsewhere name, those which were applied. It may be called at any time.
func (s *Source) Follow(files []string) {
	files = slices.Clone(files)
	s.others.Store(&files)
}

// named returns the files to look at besides the manifests: those that the last Result was made with, and those of Follow.
func (s *Source) named() (names []string) {
	if s.last != nil {
		for _, c := range s.last.attached {
			names = append(names, c.name)
		}
	}
	return append(names, s.followed()...)
}

func (s *Source) followed() []string {
	if files := s.others.Load(); files != nil {
		return *files
	}
	return nil
}

// result makes a Result of what was found in the folder.
func (s *Source) result(found *snapshot, ds []model.Diagnostic) *Result {
	out := found.result(ds, s.past)
	s.past = Good{Objects: out.Objects, Secrets: out.Config.Secrets}
	found.attach(s.followed(), true)
	return out
}

// watchAttached adds the folders of attached files to those that are watched.
func (s *snapshot) watchAttached() {
	for _, c := range s.attached {
		if dir := filepath.Dir(c.name); !slices.Contains(s.dirs, dir) {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				s.dirs = append(s.dirs, dir)
			}
		}
	}
}

// fileUse is the name of a Secret in files, and who wants it.
type fileUse struct {
	name   string
	origin ident.Origin
}

// fileSecrets finds every name of a Secret in files.
func fileSecrets(cfg *model.Config) []fileUse {
	var out []fileUse
	add := func(origin ident.Origin, names ...string) {
		for _, n := range names {
			if strings.HasPrefix(n, manifest.FileSecretPrefix) {
				out = append(out, fileUse{n, origin})
			}
		}
	}
	server := func(t *plan.ServerTLS, origin ident.Origin) {
		if t != nil {
			add(origin, append(slices.Clone(t.Secrets), t.Authorities)...)
		}
	}
	traffic := func(t *model.TrafficPolicy, origin ident.Origin) {
		if t == nil {
			return
		}
		for _, p := range append([]model.PortPolicy{{Traffic: *t}}, t.Ports...) {
			if c := p.Traffic.Originate; c != nil {
				add(origin, c.Secret, c.Authorities)
			}
		}
	}
	for i := range cfg.Gateways {
		for j := range cfg.Gateways[i].Servers {
			s := &cfg.Gateways[i].Servers[j]
			server(s.TLS, s.Origin)
		}
	}
	for i := range cfg.Sidecars {
		for _, p := range cfg.Sidecars[i].Ingress {
			server(p.TLS, p.Origin)
		}
	}
	for i := range cfg.Traffic {
		t := &cfg.Traffic[i]
		traffic(t.Traffic, t.Origin)
		for _, s := range t.Subsets {
			traffic(s.Traffic, s.Origin)
		}
	}
	return out
}
