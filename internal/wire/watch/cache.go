package watch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/wire/packed"
)

// cacheFile holds the plan in force: magic, SHA-256 of the rest, encoded plan. It names what the workload may reach, so it
// is as private as the certificate beside it.
const (
	cacheFile  = "plan.cache"
	cacheMagic = "malha plan 1\n"
)

// cacheDelay is how long changes are collected before they are written: under churn one write stands for many.
const cacheDelay = time.Second

// cache writes the plan in force to disk, away from the stream: a slow disk must not delay an answer.
type cache struct {
	path string
	log  *slog.Logger
	wake chan struct{}

	mu   sync.Mutex
	next *packed.Plan // to be written, nil when the file is up to date
}

func newCache(path string, log *slog.Logger) *cache {
	return &cache{path: path, log: log, wake: make(chan struct{}, 1)}
}

// put has p written soon.
func (c *cache) put(p *packed.Plan) {
	c.mu.Lock()
	c.next = p
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends. What is left then is for a last flush.
func (c *cache) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		t := time.NewTimer(cacheDelay)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		c.flush()
	}
}

func (c *cache) flush() {
	c.mu.Lock()
	p := c.next
	c.next = nil
	c.mu.Unlock()
	if p == nil {
		return
	}
	if err := c.write(p); err != nil {
		c.log.Warn("the plan could not be kept on disk: a restart without a control plane will use an older one or none", "error", err)
	}
}

func (c *cache) write(p *packed.Plan) (err error) {
	out := make([]byte, len(cacheMagic)+sha256.Size)
	copy(out, cacheMagic)
	if out, err = p.Append(out); err != nil {
		return err
	}
	sum := sha256.Sum256(out[len(cacheMagic)+sha256.Size:])
	copy(out[len(cacheMagic):], sum[:])
	dir := filepath.Dir(c.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".plan-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(out)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// No fsync: after a power cut the file may be short, and then its checksum says so.
	return os.Rename(f.Name(), c.path)
}

// load returns the kept plan of node, nil when there is none.
func (c *cache) load(node ident.Name) (*packed.Plan, error) {
	b, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(b, []byte(cacheMagic))
	if !ok || len(rest) < sha256.Size {
		return nil, fmt.Errorf("%s was not written by this version", c.path)
	}
	sum, body := rest[:sha256.Size], rest[sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("%s is damaged: its checksum does not fit", c.path)
	}
	p, err := packed.Parse(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	if p.Node.Name != node {
		return nil, fmt.Errorf("%s is the plan of %s, this is %s", c.path, p.Node.Name, node)
	}
	return p, nil
}
