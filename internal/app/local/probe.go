package local

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/proxy/stream"
)

// Probing: often while a program starts, rarely once it serves. A program is ready when it accepts connections on all its ports and,
// when it has a readinessProbe, is well by that; and no longer when it was not several times in a row (its proxies' own passive health
// is quicker).
const (
	probeStarting = 25 * time.Millisecond
	probeServing  = 2 * time.Second
	probeTimeout  = time.Second
	probeFailures = 2
)

// pace is how often a program is asked, and how often in a row an answer has to come to be believed.
type pace struct {
	serving, doubtful   time.Duration // from one question to the next once it serves, and after an answer that it does not
	failures, successes int
}

// paceOf returns the pace that the readinessProbe of a workload asks for.
func paceOf(w *model.Workload) pace {
	if w.Check == nil {
		return pace{probeServing, probeStarting, probeFailures, 1}
	}
	every := cmp.Or(w.Check.Interval.D(), 10*time.Second) // zeros are as plan.HealthCheck has them
	return pace{every, every, int(cmp.Or(w.Check.Unhealthy, 3)), int(cmp.Or(w.Check.Healthy, 2))}
}

// probe tells changed whether ask is content, and when not with what, whenever either changes, until ctx ends. ask returns the
// address that refuses, or a sentence about the program.
func probe(ctx context.Context, at pace, ask func(context.Context) (bad string, err error), changed func(ready bool, bad string)) {
	ready, row, told := false, 0, "" // row is how many answers there were in a row that speak for a change
	pause := probeStarting
	for {
		bad, err := ask(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err == nil) != ready {
			row++
		} else {
			row = 0
		}
		switch {
		case err == nil && !ready && row >= at.successes:
			ready, row, told = true, 0, ""
			changed(true, "")
		case err != nil && ready && row >= at.failures:
			ready, row, told = false, 0, bad
			changed(false, bad)
			pause = probeStarting
		case err != nil && !ready:
			if bad != told {
				told = bad
				changed(false, bad)
			}
			pause = min(pause+pause/4, time.Second)
		}
		wait := pause
		switch {
		case ready && row > 0:
			wait = at.doubtful
		case ready:
			wait = at.serving
		}
		if !slept(ctx, wait) {
			return
		}
	}
}

// asker returns how the program of a workload is asked.
func asker(w *model.Workload, app map[int]string) func(context.Context) (string, error) {
	addrs := slices.Sorted(maps.Values(app))
	check := w.Check
	if check == nil || check.Path == "" && !check.GRPC {
		return func(ctx context.Context) (string, error) { return refused(ctx, addrs) }
	}
	client := &http.Client{
		Timeout: max(check.Timeout.D(), 10*time.Millisecond),
		Transport: &http.Transport{
			DisableKeepAlives: true, Proxy: nil, Protocols: protocolsOf(check),
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // whoever has the port is believed (plan.HealthCheck)
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	question, at := askHTTP, "http://"+app[w.CheckPort]+check.Path
	switch {
	case check.GRPC:
		question, at = askGRPC, "http://"+app[w.CheckPort]+stream.HealthMethod
	case check.TLS:
		at = "https://" + app[w.CheckPort] + check.Path
	}
	return func(ctx context.Context) (string, error) {
		if bad, err := refused(ctx, addrs); err != nil {
			return bad, err
		}
		return question(ctx, client, at, check)
	}
}

func protocolsOf(check *plan.HealthCheck) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(!check.GRPC)
	p.SetUnencryptedHTTP2(check.GRPC)
	return p
}

// askHTTP asks with a GET, which wants a status from 200 to 399.
func askHTTP(ctx context.Context, client *http.Client, url string, check *plan.HealthCheck) (string, error) {
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

// askGRPC asks for the health of a service, which has to be SERVING.
func askGRPC(ctx context.Context, client *http.Client, url string, check *plan.HealthCheck) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(stream.HealthQuestion(check.Host)))
	if err != nil {
		return "its readinessProbe is no URL: " + url, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	res, err := client.Do(req)
	if err != nil {
		return "does not answer the gRPC health check of its readinessProbe at " + req.URL.Host, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, stream.MostHealth+1))
	if err != nil {
		return "does not answer the gRPC health check of its readinessProbe at " + req.URL.Host, err
	}
	outcome := res.Trailer
	if res.Header.Get("Grpc-Status") != "" { // of an answer that is trailers alone
		outcome = res.Header
	}
	if err := stream.HealthAnswer(outcome.Get("Grpc-Status"), outcome.Get("Grpc-Message"), answer); err != nil {
		return "is not ready by the gRPC health check of its readinessProbe at " + req.URL.Host + ": " + err.Error(), errNotReady
	}
	return "", nil
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
