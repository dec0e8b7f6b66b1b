package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"

	"github.com/malha-mesh/malha/internal/app/local"
)

// client talks to the control socket of a running mesh.
type client struct {
	dir  string
	http *http.Client
}

func newClient(dir string) *client {
	return &client{dir: dir, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return local.DialControl(dir) },
	}}}
}

// noMeshError says that nothing answers in a state directory.
type noMeshError struct{ dir string }

func (e *noMeshError) Error() string {
	return fmt.Sprintf("no mesh is running in %s; start one with `malha up`", e.dir)
}

// do sends a request and returns the body of the answer, which the caller closes.
func (c *client) do(ctx context.Context, method, path string, query url.Values, body []byte) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "malha", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
			return nil, &noMeshError{c.dir}
		}
		if _, ok := local.FindRunning(c.dir); !ok && ctx.Err() == nil && !errors.Is(err, os.ErrPermission) {
			return nil, &noMeshError{c.dir} // it ended while it was asked
		}
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("the mesh in %s belongs to another user; use your own with --state DIR", c.dir)
		}
		return nil, fmt.Errorf("the mesh in %s did not answer: %w; see `malha status`", c.dir, errors.Unwrap(err))
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	var f local.Failure
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("the mesh in %s answered %s; is it another version? restart it with `malha down` and `malha up`", c.dir, res.Status)
	}
	return nil, errors.New(f.Error)
}

// get asks for a value.
func (c *client) get(ctx context.Context, path string, query url.Values, v any) error {
	return c.call(ctx, http.MethodGet, path, query, nil, v)
}

func (c *client) call(ctx context.Context, method, path string, query url.Values, body []byte, v any) error {
	r, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(v); err != nil {
		return fmt.Errorf("the mesh in %s broke off its answer: %w", c.dir, err)
	}
	return nil
}

func (c *client) status(ctx context.Context) (*local.Status, error) {
	st := new(local.Status)
	return st, c.get(ctx, "/v1/status", nil, st)
}

func (c *client) objects(ctx context.Context, kind, namespace string) ([]local.Object, error) {
	var objects []local.Object
	return objects, c.get(ctx, "/v1/objects", url.Values{"kind": {kind}, "namespace": {namespace}}, &objects)
}

// change sends manifests to apply or delete.
func (c *client) change(ctx context.Context, verb string, files []local.ManifestFile, namespace string, f *changeFlags) (*local.Applied, error) {
	body, err := json.Marshal(files)
	if err != nil {
		return nil, err
	}
	query := url.Values{"dry-run": {f.dry.String()}, "missing-ok": {strconv.FormatBool(f.missingOK)}}
	if namespace != "" {
		query.Set("namespace", namespace)
	}
	a := new(local.Applied)
	return a, c.call(ctx, http.MethodPost, "/v1/"+verb, query, body, a)
}

func (c *client) down(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/down", nil, nil, &struct{}{})
}
