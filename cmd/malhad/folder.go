package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/malha-mesh/malha/internal/app/control"
	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/file"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/world"
)

// folder is a control plane that follows a folder. take runs in one goroutine at a time: first serveFolder's, then the source's.
type folder struct {
	s       *settings
	plane   *control.Control
	placed  placement.Placement
	inForce []config.Object               // nil: nothing is yet
	tokens  map[ident.Name]ident.Identity // written so far
	stderr  io.Writer
	log     *slog.Logger
}

// serveFolder serves s.config until ctx ends. A folder that is wrong at the start is an error; one that becomes wrong
// later keeps its last good state in force.
func serveFolder(ctx context.Context, s *settings, stderr io.Writer, log *slog.Logger) error {
	source := file.New(file.Options{Dir: s.config, Log: log})
	first := source.Load()
	plane, err := control.Open(control.Options{
		Listen: s.listen, Dir: filepath.Join(s.state, "ca"), TrustDomain: s.trustDomain, CertTTL: s.certTTL, Log: log,
	})
	var port *net.OpError
	var path *fs.PathError
	switch {
	case errors.As(err, &port):
		return fmt.Errorf("%w; choose another with --listen", err)
	case errors.As(err, &path):
		return fmt.Errorf("%w; choose another folder with --state", err)
	case err != nil:
		return err
	}
	f := &folder{s: s, plane: plane, tokens: make(map[ident.Name]ident.Identity), stderr: stderr, log: log}
	if err := f.take(first); err != nil {
		return errors.Join(err, plane.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		// Only the end of ctx ends it.
		_ = source.Run(ctx, func(r *file.Result) {
			if err := f.take(r); err != nil {
				log.Error("the last good configuration keeps serving", "error", err)
			}
		})
	})
	log.Info("serving", "listen", plane.Addr(), "config", s.config, "trust_domain", plane.TrustDomain(), "cert_ttl", s.certTTL)
	err = plane.Run(ctx)
	cancel()
	wg.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

var errManifests = errors.New("the manifests have errors")

// take puts in force what of a folder can be, and prints what is wrong. At the first time nothing may be.
func (f *folder) take(r *file.Result) error {
	var placed placement.Placement
	var full error // there is no place for all of it
	c, ds, settled := file.Settle(r.Objects, file.Good{Objects: f.inForce, Secrets: r.Config.Secrets}, r.Diagnostics, func(cfg *model.Config) []model.Diagnostic {
		if placed, full = placement.OfflineAfter(cfg, f.placed); full != nil {
			return nil
		}
		return world.Check(world.Build(cfg, placed.Instances, placement.Gateways(cfg)))
	})
	for _, d := range ds {
		fmt.Fprintln(f.stderr, d)
	}
	switch {
	case full != nil:
		return full
	case !settled || f.inForce == nil && model.HasErrors(ds):
		return errManifests
	case model.HasErrors(ds):
		f.log.Warn("what has an error keeps serving as it was; the rest is in force")
	}
	f.adopt(c.Config, placed.Gateways)
	if err := f.writeTokens(c.Config, placed.Gateways); err != nil {
		return fmt.Errorf("writing the tokens of proxies: %w", err)
	}
	f.placed, f.inForce = placed, c.Objects
	f.plane.SetConfig(c.Config)
	f.plane.SetInstances(placed.Instances, placed.Gateways)
	f.log.Info("configuration in force", "workloads", len(c.Config.Workloads), "services", len(c.Config.Services), "gateways", len(placed.Gateways))
	return nil
}

// adopt makes everybody of the mesh's own trust domain. Manifests name none.
func (f *folder) adopt(cfg *model.Config, gateways []model.GatewayInstance) {
	domain := f.plane.TrustDomain()
	for i := range cfg.Workloads {
		cfg.Workloads[i].Identity.TrustDomain = domain
	}
	for i := range gateways {
		gateways[i].Identity.TrustDomain = domain
	}
}

// writeTokens writes a token for each proxy that has none from this process: those of another have another key.
func (f *folder) writeTokens(cfg *model.Config, gateways []model.GatewayInstance) error {
	for i := range cfg.Workloads {
		w := &cfg.Workloads[i]
		if err := f.writeToken(world.NodeOf(plan.Sidecar, w.Name, w.Identity, w.Labels)); err != nil {
			return err
		}
	}
	for i := range gateways {
		g := &gateways[i]
		if err := f.writeToken(world.NodeOf(plan.Gateway, g.Name, g.Identity, g.Labels)); err != nil {
			return err
		}
	}
	return nil
}

func (f *folder) writeToken(n plan.Node) error {
	if f.tokens[n.Name] == n.Identity {
		return nil
	}
	token, err := f.plane.Token(n)
	if err != nil {
		return err
	}
	dir := filepath.Join(f.s.state, "tokens", n.Name.Namespace)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, n.Name.Name)
	// A reader sees the old token or the new one, and nobody else either: CreateTemp makes files of mode 0600.
	tmp, err := os.CreateTemp(dir, ".token-*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(token)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return err
	}
	f.tokens[n.Name] = n.Identity
	return nil
}
