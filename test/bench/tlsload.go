package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// clientTLS is the mesh's client side in the form in which every peer can be given the same: TLS 1.3, AES-128-GCM (which
// crypto/tls offers first where the processor has AES), X25519 without the post-quantum hybrid, a P-256 client
// certificate, no resumption. It does not verify the server: the load should cost less than what it loads.
func clientTLS(dir, alpn string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}, SessionTicketsDisabled: true, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
		ServerName:           "outbound_.80_._." + host,
	}
	if alpn != "" {
		cfg.NextProtos = strings.Split(alpn, ",")
	}
	return cfg, nil
}

// each runs f on n connections at once until the time is over or one fails.
func each(n int, d time.Duration, f func(i int, until time.Time) error) (time.Duration, error) {
	began := time.Now()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i, began.Add(d)) })
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

// tlsLoad sends requests over keep-alive TLS connections as fast as answers come.
func tlsLoad(port, connections int, identity, alpn string, d time.Duration) (loadResult, error) {
	cfg, err := clientTLS(identity, alpn)
	if err != nil {
		return loadResult{}, err
	}
	request := []byte("GET " + path + " HTTP/1.1\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n")
	var done atomic.Int64
	took, err := each(connections, d, func(_ int, until time.Time) error {
		c, err := tls.Dial("tcp", address(port), cfg)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		r := bufio.NewReaderSize(c, 32<<10)
		for time.Now().Before(until) {
			if _, err := c.Write(request); err != nil {
				return err
			}
			if err := readAnswer(r); err != nil {
				return err
			}
			done.Add(1)
		}
		return nil
	})
	return loadResult{Requests: float64(done.Load()), Seconds: took.Seconds()}, err
}

// readAnswer reads a whole answer with a Content-Length.
func readAnswer(r *bufio.Reader) error {
	for {
		head, err := r.Peek(max(1, r.Buffered()))
		if err != nil {
			return err
		}
		n, err := answerLength(head)
		if err != nil {
			return err
		}
		if n > 0 {
			_, err := r.Discard(n)
			return err
		}
		if _, err := r.Peek(len(head) + 1); err != nil { // the head is not whole yet
			return err
		}
	}
}

// handshakeLoad makes a connection for each request: full mutual handshakes.
func handshakeLoad(port, connections int, identity, alpn string, d time.Duration) (loadResult, error) {
	cfg, err := clientTLS(identity, alpn)
	if err != nil {
		return loadResult{}, err
	}
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
	var done atomic.Int64
	took, err := each(connections, d, func(i int, until time.Time) error {
		// Sources of their own for each worker: one address has too few ports for connections that stay in TIME_WAIT.
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}
		buf := make([]byte, 8<<10)
		for time.Now().Before(until) {
			if err := oneHandshake(dialer, port, cfg, request, buf); err != nil {
				return err
			}
			done.Add(1)
		}
		return nil
	})
	return loadResult{Requests: float64(done.Load()), Seconds: took.Seconds()}, err
}

func oneHandshake(dialer *net.Dialer, port int, cfg *tls.Config, request, buf []byte) error {
	nc, err := dialer.Dial("tcp", address(port))
	if err != nil {
		return err
	}
	defer func() { _ = nc.Close() }()
	c := tls.Client(nc, cfg)
	if _, err := c.Write(request); err != nil {
		return err
	}
	n := 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if length, err := answerLength(buf[:n]); err != nil || length != n {
		return fmt.Errorf("the answer has %d bytes of %d: %w", n, length, err)
	}
	if c.ConnectionState().DidResume {
		return errors.New("the session was resumed: no full handshake")
	}
	return nil
}

// bulkLoad reads what comes from connections and throws it away.
func bulkLoad(port, connections int, identity, alpn string, d time.Duration) (loadResult, error) {
	var cfg *tls.Config
	if identity != "" {
		var err error
		if cfg, err = clientTLS(identity, alpn); err != nil {
			return loadResult{}, err
		}
	}
	var got atomic.Int64
	took, err := each(connections, d, func(_ int, until time.Time) error {
		nc, err := net.Dial("tcp", address(port))
		if err != nil {
			return err
		}
		if cfg != nil {
			nc = tls.Client(nc, cfg)
		}
		defer func() { _ = nc.Close() }()
		if err := nc.SetDeadline(until); err != nil {
			return err
		}
		if _, err := nc.Write([]byte("go\n")); err != nil { // the client speaks first, so that nobody waits for who it is
			return err
		}
		buf := make([]byte, 256<<10)
		for {
			n, err := nc.Read(buf)
			got.Add(int64(n))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	if err == nil && got.Load() == 0 {
		err = errors.New("nothing came")
	}
	return loadResult{Bytes: float64(got.Load()), Seconds: took.Seconds()}, err
}

// bulkSource accepts connections and writes to each until it is closed.
func bulkSource(port int) error {
	l, err := net.Listen("tcp", address(port))
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			if _, err := c.Read(make([]byte, 16)); err != nil {
				return
			}
			for {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}()
	}
}
