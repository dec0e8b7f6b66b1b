package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// path is what requests ask for; the route for it is the second of its host.
const path = "/api/items?page=2"

// fields are the request headers of every HTTP/1.1 load: eight with Host, as a browser or a client library has them.
var fields = []string{
	"Host: " + host, "User-Agent: bench/1.0", "Accept: */*", "Accept-Language: en", "X-Request-Id: 5f0c6c4e-6d7f-4a58-9f0f-1d6f3a1b2c3d",
	"Cookie: session=0123456789abcdef", "Accept-Encoding: gzip", "X-Tenant: blue",
}

// loadResult is what a load generator counted.
type loadResult struct {
	Requests float64 // answered
	Seconds  float64
	Bytes    float64 // of bulk
	// Latencies in microseconds, from the moment when a request was due.
	P50, P99, P999 float64
	Late           float64 // requests that were sent later than 1 ms after they were due, because their connection was busy or the generator was
}

func (l loadResult) rate() float64 { return l.Requests / l.Seconds }

var (
	reRequests = regexp.MustCompile(`(\d+) requests in ([\d.]+)(m?s|m)`)
	reRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	reBad      = regexp.MustCompile(`Non-2xx[^\n]*|Socket errors[^\n]*`)
)

// wrk loads a port as fast as it can: one thread, keep-alive.
func wrk(port, connections int, seconds float64) (loadResult, error) {
	args := []string{"-c", strconv.Itoa(loadCPU), "wrk", "-t1", "-c", strconv.Itoa(connections), "-d", strconv.Itoa(max(1, int(seconds))) + "s"}
	for _, f := range fields {
		args = append(args, "-H", f)
	}
	out, err := exec.Command("taskset", append(args, "http://"+address(port)+path)...).CombinedOutput()
	if err != nil {
		return loadResult{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	if bad := reBad.Find(out); bad != nil {
		return loadResult{}, fmt.Errorf("wrk saw failures: %s", bad)
	}
	req, r := reRequests.FindSubmatch(out), reRate.FindSubmatch(out)
	if req == nil || r == nil {
		return loadResult{}, fmt.Errorf("cannot read what wrk printed: %s", out)
	}
	n, _ := strconv.ParseFloat(string(req[1]), 64)
	perSecond, _ := strconv.ParseFloat(string(r[1]), 64)
	if n == 0 || perSecond == 0 {
		return loadResult{}, errors.New("no request was answered")
	}
	return loadResult{Requests: n, Seconds: n / perSecond}, nil
}

var (
	reDone = regexp.MustCompile(`requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored`)
)

// h2load loads a port with HTTP/2, prior knowledge: requests of a gRPC unary call.
func h2load(port, connections, streams int, body string, seconds float64) (loadResult, error) {
	cmd := exec.Command("taskset", "-c", strconv.Itoa(loadCPU), "h2load", "-t1", "-c", strconv.Itoa(connections), "-m", strconv.Itoa(streams), "-D", strconv.Itoa(max(1, int(seconds))),
		"-d", body, "-H", ":authority: "+host, "-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "user-agent: grpc-go/1.70.0", "-H", "grpc-timeout: 5S",
		"-H", "x-request-id: 5f0c6c4e-6d7f-4a58-9f0f-1d6f3a1b2c3d", "http://"+address(port)+grpcPath)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return loadResult{}, fmt.Errorf("h2load: %w: %s", err, out)
	}
	m := reDone.FindSubmatch(out)
	if m == nil {
		return loadResult{}, fmt.Errorf("cannot read what h2load printed: %s", out)
	}
	done, _ := strconv.ParseFloat(string(m[1]), 64)
	ok, _ := strconv.ParseFloat(string(m[2]), 64)
	// What is in flight when the time is up is not done, and no failure.
	if ok == 0 || done-ok > 0 {
		return loadResult{}, fmt.Errorf("h2load saw failures: %s", m[0])
	}
	// With -D, what h2load calls the end is the end of the load.
	return loadResult{Requests: ok, Seconds: float64(max(1, int(seconds)))}, nil
}

// generator runs one of this program's own loads, pinned to the load's processor, and returns what it counted.
func (a *arena) generator(args ...string) (loadResult, error) {
	cmd := exec.Command("taskset", append([]string{"-c", strconv.Itoa(loadCPU), a.tools.self, "generator"}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return loadResult{}, fmt.Errorf("generator %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	var l loadResult
	if err := json.Unmarshal(out, &l); err != nil {
		return loadResult{}, fmt.Errorf("generator %s printed %q: %w", strings.Join(args, " "), out, err)
	}
	return l, nil
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', -1, 64) }
