package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"
)

// Change is the first time that an answer came which is not the one before.
type Change struct {
	At     time.Time `json:"at"`
	Answer string    `json:"answer"`
}

type changes struct {
	mu  sync.Mutex
	all []Change
}

func (c *changes) note(answer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.all); n == 0 || c.all[n-1].Answer != answer {
		c.all = append(c.all, Change{time.Now(), answer})
	}
}

func (c *changes) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = json.NewEncoder(w).Encode(c.all)
}

// watch asks for a URL again and again, and notes what changes.
func watch(ctx context.Context, url, period string) error {
	pause, err := time.ParseDuration(period)
	if err != nil {
		return err
	}
	c := &changes{}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			c.note(answer(ctx, url))
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return serveReports(ctx, c)
}

func answer(ctx context.Context, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
