// Workload is a small application for tests, and the client of all of them. As a server it speaks HTTP, gRPC (health checks)
// and a protocol in which the server speaks first; as a client it asks the same and prints what it got.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: workload serve                   HTTP on 8080, gRPC health on 9090, a greeting on 7000
       workload get URL [TIMES [HOST]]  each on a connection of its own; prints a JSON list of answers
       workload watch URL REGEXP        until standard input ends; prints a line for each answer: STATUS SUBMATCH
       workload say HOST:PORT TEXT      prints the greeting, and what comes back for the text
       workload http2 HOST:PORT         asks for HTTP/2 in plain text, and fails unless the server speaks it
       workload sleep                   until it is ended`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx)
	case len(args) == 1 && args[0] == "sleep":
		<-ctx.Done()
		return nil
	case len(args) == 2 && args[0] == "http2":
		return http2(ctx, args[1])
	case len(args) == 2 && args[0] == "get":
		return get(ctx, args[1], 1, "")
	case (len(args) == 3 || len(args) == 4) && args[0] == "get":
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return get(ctx, args[1], n, strings.Join(args[3:], ""))
	case len(args) == 3 && args[0] == "watch":
		pattern, err := regexp.Compile(args[2])
		if err != nil {
			return err
		}
		return watch(ctx, args[1], pattern)
	case len(args) == 3 && args[0] == "say":
		return say(ctx, args[1], args[2])
	}
	return errors.New(usage)
}

// Answer is one answer to get.
type Answer struct {
	Status int    `json:"status"`
	Body   string `json:"body"`
}

func ask(ctx context.Context, client *http.Client, url, host string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return Answer{}, err
	}
	req.Host = host // "": the URL's
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, string(body)}, err
}

func get(ctx context.Context, url string, times int, host string) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answers := make([]Answer, 0, times)
	for range times {
		a, err := ask(ctx, client, url, host)
		if err != nil {
			return err
		}
		answers = append(answers, a)
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

// watch asks about a hundred times a second. An answer that could not be had has the status 0 and says why.
func watch(ctx context.Context, url string, pattern *regexp.Regexp) error {
	ctx, stop := context.WithCancel(ctx)
	go func() { // until the process ends: a read of standard input can't be interrupted
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	client := &http.Client{Timeout: 10 * time.Second}
	for ctx.Err() == nil {
		a, err := ask(context.WithoutCancel(ctx), client, url, "")
		what := "-"
		if err != nil {
			what = err.Error()
		} else if m := pattern.FindStringSubmatch(a.Body); len(m) > 1 {
			what = m[1]
		}
		fmt.Println(a.Status, what)
		time.Sleep(8 * time.Millisecond)
	}
	return nil
}

func http2(ctx context.Context, address string) error {
	plain := new(http.Protocols)
	plain.SetUnencryptedHTTP2(true)
	a, err := ask(ctx, &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Protocols: plain}}, "http://"+address+"/", "")
	if err == nil {
		fmt.Println(a.Status)
	}
	return err
}

func say(ctx context.Context, address, text string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	greeting, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("no greeting: %w", err)
	}
	if _, err := fmt.Fprintln(conn, text); err != nil {
		return err
	}
	echo, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("no answer after %q: %w", greeting, err)
	}
	fmt.Print(greeting, echo)
	return nil
}

func serve(ctx context.Context) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s %s %s\n", name, r.Host, r.URL.Path)
	})
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/missing", http.NotFoundHandler())

	health := http.NewServeMux()
	// https://github.com/grpc/grpc/blob/master/doc/health-checking.md: a message of one field, status = SERVING.
	health.HandleFunc("/grpc.health.v1.Health/Check", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, 1})
	})
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)

	greeter, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	go greet(greeter, name)
	failed := make(chan error, 2)
	servers := []*http.Server{{Addr: ":8080", Handler: mux}, {Addr: ":9090", Handler: health, Protocols: h2c}}
	for _, s := range servers {
		go func() { failed <- s.ListenAndServe() }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer stop()
	for _, s := range servers {
		err = errors.Join(err, s.Shutdown(ctx))
	}
	return err
}

// greet says its name, and then what it is told.
func greet(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			if _, err := fmt.Fprintf(conn, "220 %s\n", name); err == nil {
				_, _ = io.Copy(conn, conn)
			}
		}()
	}
}
