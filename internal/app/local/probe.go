package local

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/model"
)

// Probing: often while a program starts, rarely once it serves. A program is ready when it accepts connections on all
// its ports and, when it has an HTTP probe, answers it with 200 to 399; and no longer when
// it refused probeFailures times in a row (its proxies' own passive health is quicker).
const (
	probeStarting = 25 * time.Millisecond
	probeServing  = 2 * time.Second
	probeTimeout  = time.Second
	probeFailures = 2
)

// probe tells changed whether ask is content, and when not with what, whenever either changes, until ctx ends. ask returns the
// address that refuses, or a sentence about the program.
func probe(ctx context.Context, ask func(context.Context) (bad string, err error), changed func(ready bool, bad string)) {
	ready, failures, told := false, 0, ""
	pause := probeStarting
	for {
		bad, err := ask(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			failures = 0
			if !ready {
				ready, told = true, ""
				changed(true, "")
			}
			pause = probeServing
		case ready:
			failures++
			pause = probeStarting
			if failures >= probeFailures {
				ready, told = false, bad
				changed(false, bad)
			}
		default:
			if bad != told {
				told = bad
				changed(false, bad)
			}
			pause = min(pause+pause/4, time.Second)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// asker returns how the program of a workload is asked.
func asker(w *model.Workload, app map[int]string) func(context.Context) (string, error) {
	addrs := slices.Sorted(maps.Values(app))
	check := w.Check
	if check == nil || check.Path == "" {
		return func(ctx context.Context) (string, error) { return refused(ctx, addrs) }
	}
	url := "http://" + app[w.CheckPort] + check.Path
	if check.TLS {
		url = "https://" + app[w.CheckPort] + check.Path
	}
	client := &http.Client{
		Timeout: max(check.Timeout.D(), 10*time.Millisecond),
		Transport: &http.Transport{
			DisableKeepAlives: true, Proxy: nil,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // whoever has the port is believed (plan.HealthCheck)
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) (string, error) {
		if bad, err := refused(ctx, addrs); err != nil {
			return bad, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "its readinessProbe is no URL: " + url, err
		}
		if check.Host != "" {
			req.Host = check.Host
		}
		for _, f := range check.Headers {
			req.Header.Add(f.Name, f.Value)
		}
		res, err := client.Do(req)
		if err != nil {
			return "does not answer its readinessProbe " + url, err
		}
		_ = res.Body.Close()
		if res.StatusCode < 200 || res.StatusCode > 399 {
			return fmt.Sprintf("answers its readinessProbe %s with %d", url, res.StatusCode), errNotReady
		}
		return "", nil
	}
}

var errNotReady = errors.New("not ready")

// refused returns the first address that does not accept a connection.
func refused(ctx context.Context, addrs []string) (string, error) {
	d := net.Dialer{Timeout: probeTimeout}
	for _, a := range addrs {
		c, err := d.DialContext(ctx, "tcp", a)
		if err != nil {
			return a, err
		}
		_ = c.Close()
	}
	return "", nil
}
