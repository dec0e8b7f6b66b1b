package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
)

// pace is between two requests of one client.
const pace = 10 * time.Millisecond

// Count is what one kind of client has seen.
type Count struct {
	Sent   int `json:"sent"`
	Failed int `json:"failed"`
	// Opened are streams; each ends well when everything that was sent on it was answered, and the server said OK.
	Opened   int           `json:"opened,omitempty"`
	Slowest  time.Duration `json:"slowest"`
	Failures []string      `json:"failures,omitempty"` // the first ones, with their times
}

// counts are by the name of the client.
type counts struct {
	mu sync.Mutex
	of map[string]*Count
}

// note counts a request, or a message of a stream, that took this long.
func (c *counts) note(client string, took time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.get(client)
	n.Sent++
	n.Slowest = max(n.Slowest, took)
	if err != nil {
		n.Failed++
		if len(n.Failures) < 20 {
			n.Failures = append(n.Failures, time.Now().UTC().Format("15:04:05.000 ")+err.Error())
		}
	}
}

func (c *counts) opened(client string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.get(client).Opened++
}

func (c *counts) get(client string) *Count {
	if c.of[client] == nil {
		c.of[client] = &Count{}
	}
	return c.of[client]
}

func (c *counts) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = json.NewEncoder(w).Encode(c.of)
}

// ask asks a host in every protocol, or all but gRPC, until ctx ends, and says on reports what came of it.
func ask(ctx context.Context, host string, rpc bool) error {
	all := &counts{of: map[string]*Count{}}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range []struct {
		name, method, path string
		transport          *http.Transport
	}{
		{"HTTP/1.1 GET", http.MethodGet, "/", &http.Transport{}},
		{"HTTP/1.1 GET, slow", http.MethodGet, "/slow", &http.Transport{}},
		{"HTTP/1.1 POST", http.MethodPost, "/", &http.Transport{}},
		{"HTTP/1.1 GET, a connection each", http.MethodGet, "/", &http.Transport{DisableKeepAlives: true}},
		{"HTTP/2 GET", http.MethodGet, "/", http2()},
		{"HTTP/2 GET, slow", http.MethodGet, "/slow", http2()},
		{"HTTP/2 POST", http.MethodPost, "/", http2()},
	} {
		client := &http.Client{Transport: c.transport, Timeout: 10 * time.Second}
		wg.Go(func() {
			every(ctx, func() {
				begun := time.Now()
				err := once(ctx, client, c.method, "http://"+host+":8080"+c.path)
				if ctx.Err() == nil {
					all.note(c.name, time.Since(begun), err)
				}
			})
		})
	}
	if rpc {
		for range 2 {
			wg.Go(func() { stream(ctx, net.JoinHostPort(host, "9090"), all) })
		}
	}
	return serveReports(ctx, all)
}

// http2 is a transport that speaks nothing else, without TLS.
func http2() *http.Transport {
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}

func every(ctx context.Context, f func()) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

func once(ctx context.Context, client *http.Client, method, url string) error {
	var body io.Reader = http.NoBody
	if method == http.MethodPost {
		body = strings.NewReader(strings.Repeat("malha ", 100))
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

// stream sends messages on one stream after another: a new one only when the server bade farewell and all is answered.
func stream(ctx context.Context, target string, all *counts) {
	const name = "gRPC stream"
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		all.note(name, 0, err)
		return
	}
	defer func() { _ = conn.Close() }()
	for ctx.Err() == nil {
		all.opened(name)
		if err := exchange(ctx, grpc_testing.NewTestServiceClient(conn), func(took time.Duration) { all.note(name, took, nil) }); err != nil && ctx.Err() == nil {
			all.note(name, 0, err)
			time.Sleep(pace)
		}
	}
}

func exchange(ctx context.Context, client grpc_testing.TestServiceClient, answered func(time.Duration)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := client.FullDuplexCall(ctx)
	if err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	for n := 0; ; n++ {
		begun := time.Now()
		watchdog := time.AfterFunc(10*time.Second, cancel)
		text := fmt.Sprint(n)
		if err := st.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: []byte(text)}}); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("message %d: %w", n, err)
		}
		ending := false
		for {
			m, err := st.Recv()
			if err != nil {
				return fmt.Errorf("message %d has no answer: %w", n, err)
			}
			if string(m.GetPayload().GetBody()) == farewell {
				ending = true
				continue
			}
			if got := string(m.GetPayload().GetBody()); got != text {
				return fmt.Errorf("message %d was answered with %q", n, got)
			}
			break
		}
		answered(time.Since(begun))
		watchdog.Stop()
		if !ending {
			time.Sleep(pace)
			continue
		}
		if err := st.CloseSend(); err != nil {
			return err
		}
		if _, err := st.Recv(); !errors.Is(err, io.EOF) {
			return fmt.Errorf("the end after message %d: %w", n, err)
		}
		return nil
	}
}

func serveReports(ctx context.Context, h http.Handler) error {
	srv := &http.Server{Addr: reports, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	if err := srv.ListenAndServe(); ctx.Err() == nil {
		return err
	}
	return nil
}
