// Command figures measures what Malha promises of a mesh on one machine, with the real programs and the Bookinfo sample, and
// fails when a promise is not kept. `make figures` builds the programs and runs it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/malha-mesh/malha/samples/bookinfo"
)

// replica is a second reviews v1, so that one may be restarted while another is alive.
const replica = `apiVersion: malha.dev/v1alpha1
kind: Workload
metadata: {name: reviews-v1-b, labels: {app: reviews, version: v1}}
spec:
  serviceAccount: bookinfo-reviews
  ports: [{name: http, port: 9080}]
  run: {command: [reviews, --listen, "127.0.0.1:$(PORT_HTTP)", --version, v1]}
`

// split is the rule that is edited while requests flow.
func split(v1, v2 int) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
    - route:
        - {destination: {host: reviews, subset: v1}, weight: %d}
        - {destination: {host: reviews, subset: v2}, weight: %d}
`, v1, v2)
}

// mesh is a running `malha up`.
type mesh struct {
	malha, state, folder string
	page                 string // URL of the reviews API behind the gateway
	client               *http.Client
}

// figure is one promise and what came of it.
type figure struct {
	name, goal, got string
	ok              bool
}

func main() {
	bin := flag.String("bin", "bin", "folder of the built programs")
	requests := flag.Int("requests", 10000, "requests to send while everything changes")
	flag.Parse()
	figures, err := run(*bin, *requests)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	missed := 0
	fmt.Fprintln(w, "\nFIGURE\tGOAL\tMEASURED\t")
	for _, f := range figures {
		verdict := "ok"
		if !f.ok {
			verdict = "MISSED"
			missed++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.name, f.goal, f.got, verdict)
	}
	_ = w.Flush()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	case missed > 0:
		fmt.Fprintf(os.Stderr, "figures: %d missed\n", missed)
		os.Exit(1)
	}
}

func run(bin string, requests int) (figures []figure, err error) {
	dir, err := os.MkdirTemp("", "malha-figures")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	malha, err := filepath.Abs(filepath.Join(bin, "malha"))
	if err != nil {
		return nil, err
	}
	m := &mesh{malha: malha, state: filepath.Join(dir, "state"), folder: filepath.Join(dir, "mesh"),
		client: &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
	if err := os.CopyFS(dir, bookinfo.Manifests); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"replica.yaml": replica, "split.yaml": split(90, 10)} {
		if err := os.WriteFile(filepath.Join(m.folder, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}

	start := time.Now()
	if out, err := m.run("up", "-d", "-f", m.folder, "--gateway-port", "0", "--cert-ttl", "8s"); err != nil {
		return nil, fmt.Errorf("malha up: %w\n%s", err, out)
	}
	took := time.Since(start)
	defer func() {
		if _, downErr := m.run("down"); err == nil {
			err = downErr
		}
	}()
	figures = append(figures, figure{"malha up -d, programs built: ready", "< 5 s", took.Round(10 * time.Millisecond).String(), took < 5*time.Second})
	gateway, err := m.run("url", "gateway")
	if err != nil {
		return figures, err
	}
	m.page = strings.TrimSpace(gateway) + "/api/v1/products/0/reviews"

	for _, step := range []func() (figure, error){
		m.memory,
		func() (figure, error) { return m.weights(1000) },
		func() (figure, error) { return m.edits(40) },
		func() (figure, error) { return m.changes(requests) },
	} {
		f, err := step()
		if err != nil {
			return figures, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// memory reads what the idle sidecars hold.
func (m *mesh) memory() (figure, error) {
	time.Sleep(2 * time.Second) // idle: what starting up needed is given back
	st, err := m.status()
	if err != nil {
		return figure{}, err
	}
	var worst float64
	for _, p := range st.Proxies {
		if p.Role != "sidecar" {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
		if err != nil {
			return figure{}, err
		}
		kib := regexp.MustCompile(`VmRSS:\s+(\d+)`).FindSubmatch(b)
		if kib == nil {
			return figure{}, fmt.Errorf("no resident memory of process %d", p.PID)
		}
		n, _ := strconv.Atoi(string(kib[1]))
		worst = max(worst, float64(n)/1024)
	}
	return figure{"idle sidecar, the largest of " + strconv.Itoa(len(st.Workloads)), "≤ 16 MB resident", fmt.Sprintf("%.1f MB", worst), worst > 0 && worst <= 16}, nil
}

// weights counts who answers at 90/10.
func (m *mesh) weights(n int) (figure, error) {
	f := figure{fmt.Sprintf("%d requests at 90/10: share of v2", n), "10 ± 3 %", "", false}
	// Of a thousand fair draws one run in six hundred is further off; two in a row are no chance.
	for range 2 {
		canary := 0
		for range n {
			v, err := m.get()
			if err != nil {
				return figure{}, err
			}
			if v == "reviews-v2" {
				canary++
			}
		}
		share := 100 * float64(canary) / float64(n)
		f.got, f.ok = strings.TrimPrefix(fmt.Sprintf("%s, %.1f %%", f.got, share), ", "), share >= 7 && share <= 13
		if f.ok {
			break
		}
	}
	return f, nil
}

// edits measures from the write of a file to the first answer that obeys it: each edit makes the gateway put another
// number into its answers.
func (m *mesh) edits(n int) (figure, error) {
	file := filepath.Join(m.folder, "gateway.yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		return figure{}, err
	}
	var times []time.Duration
	for i := range n {
		text := string(before) + fmt.Sprintf("      headers: {response: {set: {x-edit: %q}}}\n", strconv.Itoa(i))
		start := time.Now()
		if err := m.replace(file, text); err != nil {
			return figure{}, err
		}
		for {
			_, edit, err := m.ask()
			if err != nil {
				return figure{}, err
			}
			if edit == strconv.Itoa(i) {
				break
			}
			if time.Since(start) > 10*time.Second {
				return figure{}, fmt.Errorf("edit %d is not in force after 10 s", i+1)
			}
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	p99 := times[min(n-1, n*99/100)]
	return figure{fmt.Sprintf("edit of a file to effect, %d edits", n), "p99 < 1 s", fmt.Sprintf("p50 %s, p99 %s", times[n/2].Round(time.Millisecond), p99.Round(time.Millisecond)), p99 < time.Second}, nil
}

// changes sends requests while weights change ten times, certificates rotate and one replica is killed.
func (m *mesh) changes(n int) (figure, error) {
	before, err := m.status()
	if err != nil {
		return figure{}, err
	}
	if err := m.edit(split(90, 10)); err != nil {
		return figure{}, err
	}
	var sent, failed atomic.Int64
	var firstFailure atomic.Value
	var wg sync.WaitGroup
	var over atomic.Bool             // all is changed, and had its time to fail something
	const minimum = 20 * time.Second // long enough for every certificate to rotate at least twice
	start := time.Now()
	for range 4 {
		wg.Go(func() {
			for !over.Load() || sent.Load() < int64(n) {
				sent.Add(1)
				if _, err := m.get(); err != nil {
					failed.Add(1)
					firstFailure.CompareAndSwap(nil, err.Error())
				}
				if !over.Load() && sent.Load() > int64(n)/2 {
					time.Sleep(2 * time.Millisecond) // spread the second half over the time that remains
				}
			}
		})
	}
	for i := range 10 {
		time.Sleep(1500 * time.Millisecond)
		if err := m.edit(split(90-5*i, 10+5*i)); err != nil {
			return figure{}, err
		}
		if i == 4 {
			if err := m.restart("reviews-v1"); err != nil {
				return figure{}, err
			}
		}
	}
	time.Sleep(max(time.Second, minimum-time.Since(start)))
	over.Store(true)
	wg.Wait()
	after, err := m.status()
	if err != nil {
		return figure{}, err
	}
	rotated := rotations(before, after)
	last, err := m.weightsInForce()
	if err != nil {
		return figure{}, err
	}
	got := fmt.Sprintf("%d of %d failed", failed.Load(), sent.Load())
	if f := firstFailure.Load(); f != nil {
		got += ": " + f.(string)
	}
	switch {
	case !rotated:
		return figure{}, errors.New("the certificates did not rotate: the figure says nothing")
	case last < 35:
		return figure{}, fmt.Errorf("after the last edit v2 has %.0f %% of the traffic, want 55: the edits had no effect and the figure says nothing", last)
	}
	return figure{"requests while 10 edits, rotations, a killed replica", "0 failed", got, failed.Load() == 0}, nil
}

// weightsInForce returns the share of v2 in percent.
func (m *mesh) weightsInForce() (float64, error) {
	const n = 200
	v2 := 0
	for range n {
		by, err := m.get()
		if err != nil {
			return 0, err
		}
		if by == "reviews-v2" {
			v2++
		}
	}
	return 100 * float64(v2) / n, nil
}

// rotations reports whether every proxy has a newer certificate than before.
func rotations(before, after *status) bool {
	old := map[string]time.Time{}
	for _, p := range before.Proxies {
		old[p.Name.Name] = p.CertExpires
	}
	for _, p := range after.Proxies {
		if !p.CertExpires.After(old[p.Name.Name]) {
			return false
		}
	}
	return len(after.Proxies) > 0
}

// restart kills the program of a workload; the supervisor starts it again.
func (m *mesh) restart(workload string) error {
	st, err := m.status()
	if err != nil {
		return err
	}
	for _, w := range st.Workloads {
		if w.Name.Name == workload && w.PID > 0 {
			return syscall.Kill(w.PID, syscall.SIGKILL) // a process that our own mesh started
		}
	}
	return fmt.Errorf("no running workload %s", workload)
}

// edit replaces the split.
func (m *mesh) edit(text string) error { return m.replace(filepath.Join(m.folder, "split.yaml"), text) }

// replace writes a file as editors do: aside, then renamed.
func (m *mesh) replace(file, text string) error {
	tmp := filepath.Join(m.folder, ".edit.tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// get asks for the reviews through the gateway and returns which workload answered.
func (m *mesh) get() (string, error) {
	by, _, err := m.ask()
	return by, err
}

// ask is get, with the number of the edit that the gateway is at.
func (m *mesh) ask() (by, edit string, err error) {
	resp, err := m.client.Get(m.page)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	}
	var answer struct {
		Podname string `json:"podname"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", "", err
	}
	return answer.Podname, resp.Header.Get("x-edit"), nil
}

// status is what the figures need of `malha status -o json`.
type status struct {
	Workloads []struct {
		Name struct{ Name string } `json:"name"`
		PID  int                   `json:"pid"`
	} `json:"workloads"`
	Proxies []struct {
		Name        struct{ Name string } `json:"name"`
		Role        string                `json:"role"`
		PID         int                   `json:"pid"`
		CertExpires time.Time             `json:"certExpires"`
	} `json:"proxies"`
}

func (m *mesh) status() (*status, error) {
	out, err := m.run("status", "-o", "json")
	var st status
	if jsonErr := json.Unmarshal([]byte(out), &st); jsonErr != nil {
		return nil, errors.Join(err, jsonErr) // status exits with 1 while something is starting; what it says counts
	}
	return &st, nil
}

// run calls malha on this mesh and returns its standard output.
func (m *mesh) run(args ...string) (string, error) {
	cmd := exec.Command(m.malha, append(args, "--state", m.state)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("malha %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.String(), nil
}
