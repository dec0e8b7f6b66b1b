package testport

import (
	"net"
	"strings"
	"testing"
)

// A port that is kept is nobody's until its owner listens, and nobody gets it by chance.
func TestReserve(t *testing.T) {
	addr := Address(t)
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close()
		t.Fatal("somebody listens on a port that is only kept")
	}
	for range 2 { // again after the first listener is gone
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatalf("its owner cannot listen: %v", err)
		}
		go func() {
			if c, err := ln.Accept(); err == nil {
				_ = c.Close()
			}
		}()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if other, err := net.Listen("tcp", addr); err == nil {
			_ = other.Close()
			t.Error("two listen on one port")
		}
		_ = ln.Close()
	}

	kept := map[string]bool{}
	for range 300 {
		kept[Address(t)] = true
	}
	if len(kept) != 300 {
		t.Fatalf("%d ports for 300", len(kept))
	}
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	for range 300 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		c, err := net.Dial("tcp", target.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		for _, got := range []string{ln.Addr().String(), c.LocalAddr().String()} {
			if kept[got] || !strings.HasPrefix(got, "127.0.0.1:") {
				t.Errorf("the kernel gave away %s", got)
			}
		}
	}
}
