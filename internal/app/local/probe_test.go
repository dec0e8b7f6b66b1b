package local

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// The numbers of a readinessProbe hold: how often a program is asked, and how often in a row an answer counts.
func TestProbeKeepsItsPace(t *testing.T) {
	slow := &model.Workload{Check: &plan.HealthCheck{Interval: plan.Duration(10 * time.Second), Unhealthy: 3, Healthy: 2}}
	for _, c := range []struct {
		what     string
		workload *model.Workload
		answers  string // of the program: + and -
		want     string // changes, and after how many answers
	}{
		{"without a probe", &model.Workload{}, "-+-+--+", "2 ready, 6 not, 7 ready"},
		{"with numbers", slow, "-++--+---++", "3 ready, 9 not, 11 ready"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var got []string
			var last, longest time.Duration // between two answers
			n, began := 0, time.Now()
			probe(ctx, paceOf(c.workload), func(context.Context) (string, error) {
				if n == len(c.answers) {
					cancel()
					return "", nil
				}
				now := time.Since(began)
				last, longest = now, max(longest, now-last)
				n++
				if c.answers[n-1] == '-' {
					return "bad", errors.New("bad")
				}
				return "", nil
			}, func(ready bool, _ string) {
				if word := strconv.Itoa(n) + " ready"; ready {
					got = append(got, word)
				} else if n > 1 {
					got = append(got, strconv.Itoa(n)+" not")
				}
			})
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("%s: %s, want %s", c.what, got, c.want)
			}
			if want := paceOf(c.workload).serving; longest != want {
				t.Errorf("%s: it was asked every %s, want %s", c.what, longest, want)
			}
		})
	}
}

// A gRPC program is asked as its readinessProbe says, and not only whether its port is open.
func TestAskerOfGRPC(t *testing.T) {
	var status byte
	var asked string
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(body)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		if status == 0 {
			w.Header().Set("Grpc-Status", "5") // NOT_FOUND, of a service that is not known
			w.Header().Set("Grpc-Message", "no shop")
			return
		}
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, status})
		w.Header().Set("Grpc-Status", "0")
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	addr := s.Listener.Addr().String()
	w := &model.Workload{Check: &plan.HealthCheck{GRPC: true, Host: "shop", Timeout: plan.Duration(10 * time.Second)}, CheckPort: 80}
	ask := asker(w, map[int]string{80: addr})
	for code, want := range map[byte]string{
		0: "is not ready by the gRPC health check of its readinessProbe at " + addr + `: the health check ended with grpc-status "5" "no shop"`, 1: "",
		2: "is not ready by the gRPC health check of its readinessProbe at " + addr + ": it says NOT_SERVING",
	} {
		status = code
		if bad, err := ask(t.Context()); bad != want || (err == nil) != (want == "") {
			t.Errorf("status %d: %q, %v", code, bad, err)
		}
	}
	if diff := cmp.Diff("POST /grpc.health.v1.Health/Check application/grpc \x00\x00\x00\x00\x06\x0a\x04shop", asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

// A readinessProbe that is edited is asked from then on, with no restart of the program.
func TestAnEditedProbeIsAsked(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1000)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	defer s.Close()
	_, port, _ := strings.Cut(s.Listener.Addr().String(), ":")
	there := func(path string) string {
		return "apiVersion: malha.dev/v1alpha1\nkind: Workload\nmetadata: {name: there}\nspec: {address: 127.0.0.1, ports: [{name: http, port: " + port +
			"}], readinessProbe: {httpGet: {path: " + path + "}}}\n"
	}
	_, folder, _ := running(t, sleeper+there("/one"))
	for <-asked != "/one" {
	}
	write(t, filepath.Join(folder, "mesh.yaml"), sleeper+there("/two"))
	for {
		select {
		case path := <-asked:
			if path == "/two" {
				return
			}
		case <-time.After(time.Minute):
			t.Fatal("the new probe is never asked")
		}
	}
}
