package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/malha-mesh/malha/test/cluster"
)

// API asks the API server directly, without the start of a kubectl for each question: for what is measured.
type API struct {
	client *http.Client
	proxy  *exec.Cmd
}

// OpenAPI starts a kubectl proxy whose socket is in dir. Close ends it.
func OpenAPI(ctx context.Context, c *cluster.Cluster, dir string) (*API, error) {
	socket := filepath.Join(dir, "api")
	kubectl := "kubectl"
	if !c.External {
		kubectl = filepath.Join(c.Dir(), "bin", "kubectl")
	}
	a := &API{proxy: c.Command(ctx, kubectl, "proxy", "--unix-socket="+socket)}
	a.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	if err := a.proxy.Start(); err != nil {
		return nil, err
	}
	var err error
	for range 100 {
		if err = a.Do(ctx, http.MethodGet, "/version", nil, nil); err == nil {
			return a, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, errors.Join(fmt.Errorf("kubectl proxy: %w", err), a.Close())
}

// Close ends it.
func (a *API) Close() error {
	a.client.CloseIdleConnections()
	err := a.proxy.Process.Kill()
	_ = a.proxy.Wait() // it was killed
	return err
}

// Do sends in as JSON, unless it is nil, and reads the answer into out, unless that is. A PATCH is a merge patch.
func (a *API) Do(ctx context.Context, method, path string, in, out any) error {
	body, err := a.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if out == nil {
		_, err = io.Copy(io.Discard, body)
		return err
	}
	return json.NewDecoder(body).Decode(out)
}

func (a *API) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

// Watch calls event with each object of a list that is there, or changes, until it returns false. A watch that the API server ends
// is begun again, with what is there.
func (a *API) Watch(ctx context.Context, path string, event func(object json.RawMessage, at time.Time) bool) error {
	for try := 1; ; try++ {
		err := a.watch(ctx, path, event)
		if try == 3 || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
	}
}

func (a *API) watch(ctx context.Context, path string, event func(object json.RawMessage, at time.Time) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := a.open(ctx, http.MethodGet, path+"?watch=1", nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	in := json.NewDecoder(body)
	for {
		var e struct {
			Object json.RawMessage `json:"object"`
		}
		if err := in.Decode(&e); err != nil {
			return fmt.Errorf("watching %s: %w", path, err)
		}
		if !event(e.Object, time.Now()) {
			return nil
		}
	}
}
