package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

const (
	// drainTime is how long the requests that are in flight when a mesh is stopped may take, all together. Programs have their
	// programGrace after it.
	drainTime = 30 * time.Second
	// drainLast is for proxies that are told to end when that time is over: they say so to who is connected.
	drainLast = 2 * time.Second
	// drainQuiet is how long nothing is said about what a stopping mesh waits for: most often it is over by then.
	drainQuiet = 2 * time.Second
	// restEvery is how often sidecars are asked for their requests in flight.
	restEvery = 50 * time.Millisecond
)

// leaver is something that a mesh which stops waits for.
type leaver struct {
	text string
	done <-chan struct{}
}

// drain stops everything in the order in which no request is lost. The gateways finish what came from outside, and
// programs that nobody can ask anything end. Then what workloads asked each other before comes to its end, however many
// workloads take part: until then every sidecar lets in what that takes. Then the sidecars go, then the programs.
func (m *Mesh) drain() {
	var gateways, askers, sidecars, programs []*child
	text := make(map[*child]string)
	m.do(func() {
		m.phase = Stopping
		for _, u := range m.units {
			m.stopProbe(u)
			switch {
			case u.proxy == nil:
			case u.role == plan.Gateway:
				gateways = append(gateways, u.proxy)
				text[u.proxy] = "requests through the gateway " + u.name.String()
			default:
				sidecars = append(sidecars, u.proxy)
				text[u.proxy] = "requests at the sidecar of " + u.name.String()
			}
			switch {
			case u.program == nil:
				continue
			case len(u.workload.Ports) == 0:
				askers = append(askers, u.program)
			default:
				programs = append(programs, u.program)
			}
			text[u.program] = fmt.Sprintf("the program of %s to end (SIGTERM was sent, SIGKILL comes after %s)", u.name, programGrace)
		}
	})
	m.note(EventStep, "stopping: requests in flight finish first")
	told, stopTelling := context.WithCancel(context.Background())
	telling := make(chan struct{})
	go func() { // ends below
		defer close(telling)
		m.tellLeavers(told)
	}()
	defer func() { stopTelling(); <-telling }()

	over, cancel := context.WithTimeout(m.o.Kill, drainTime)
	defer cancel()
	hurry := context.AfterFunc(over, func() {
		slept(m.o.Kill, drainLast)
		m.cut()
	})
	defer hurry()
	m.leave(text, append(gateways, askers...))
	m.rest(over)
	m.leave(text, sidecars)
	m.leave(text, programs)
}

// leave stops children and waits until they have gone.
func (m *Mesh) leave(text map[*child]string, all []*child) {
	var leavers []leaver
	for _, c := range all {
		leavers = append(leavers, leaver{text[c], c.done})
		c.stop()
	}
	m.do(func() { m.leavers = leavers })
	for _, c := range all {
		<-c.done
	}
	m.do(func() { m.leavers = nil })
}

// waiting says what a mesh that stops waits for. It runs in the loop.
func (m *Mesh) waitingFor() (texts []string) {
	for _, l := range m.leavers {
		select {
		case <-l.done:
		default:
			texts = append(texts, l.text)
		}
	}
	slices.Sort(texts)
	return texts
}

// tellLeavers says what a mesh that takes long to stop waits for, each time that is something else.
func (m *Mesh) tellLeavers(ctx context.Context) {
	before := ""
	tick := time.NewTicker(drainQuiet)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var now string
		m.do(func() { now = strings.Join(m.waitingFor(), ", ") })
		if now != "" && now != before {
			m.note(EventStep, "still waiting for %s", now)
		}
		before = now
	}
}

// rest waits until what workloads asked each other before the mesh was stopped has been answered: while one of them works on an
// answer, it may have to ask others, so nobody's door is shut before. Programs may go on to ask for as long as they run, so what
// counts for each cluster of each sidecar is that as many requests have ended as were open, or that none is.
func (m *Mesh) rest(ctx context.Context) {
	var sidecars []ProxyStatus
	for _, p := range m.admins() {
		if p.Role == plan.Sidecar {
			sidecars = append(sidecars, p)
		}
	}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	open := make(map[requests]cluster) // as it was at the beginning
	var names []ident.Name
	gone := make(chan struct{})
	defer close(gone)
	tick := time.NewTicker(restEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		names = names[:0]
		for _, p := range sidecars {
			clusters, err := ask(ctx, client, p.Admin)
			if err != nil {
				continue // it has ended by itself: there is nothing to wait for
			}
			busy := false
			for _, c := range clusters {
				at := requests{p.Name, c.Name}
				before, known := open[at]
				switch {
				case first && c.Requests > 0:
					open[at] = c
					busy = true
				case known && c.Requests > 0 && c.ended() < before.ended()+before.Requests:
					busy = true
				default:
					delete(open, at)
				}
			}
			if busy {
				names = append(names, p.Name)
			}
		}
		var leavers []leaver
		for _, n := range names {
			leavers = append(leavers, leaver{"requests between workloads, at the sidecar of " + n.String(), gone})
		}
		m.do(func() { m.leavers = leavers })
		if len(names) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// requests names the requests of one cluster of one sidecar.
type requests struct {
	proxy   ident.Name
	cluster string
}

// cluster is what a proxy's admin port says of one of its clusters (upstream.ClusterStatus).
type cluster struct {
	Name     string `json:"name"`
	Requests int64  `json:"requests"` // in flight
	Total    int64  `json:"requestsTotal"`
}

// ended returns how many requests are over; those in flight count in the total from their beginning.
func (c *cluster) ended() int64 { return c.Total - c.Requests }

// ask returns the clusters of a proxy.
func ask(ctx context.Context, client *http.Client, admin string) ([]cluster, error) {
	page, err := fetch(ctx, client, "http://"+admin+"/clusters")
	if err != nil {
		return nil, err
	}
	var all struct {
		Clusters []cluster `json:"clusters"`
	}
	if err := json.Unmarshal(page, &all); err != nil {
		return nil, fmt.Errorf("the clusters of a proxy are told in another way than expected: %w", err)
	}
	return all.Clusters, nil
}
