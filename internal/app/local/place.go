package local

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/placement"
)

// busyError says that a port which the user asked for cannot be had.
type busyError struct {
	server int // as the Gateway says
	port   int
	holder string
	err    error // what the kernel said
}

func (e *busyError) Error() string {
	if !errors.Is(e.err, syscall.EADDRINUSE) {
		return fmt.Sprintf("cannot listen on port %d: %v", e.port, e.err) // also errClaimed
	}
	s := fmt.Sprintf("port %d is in use", e.port)
	if e.holder != "" {
		s += " by " + e.holder
	}
	return s
}

// place decides where everything listens under cfg. What runs keeps its place.
func (m *Mesh) place(cfg *model.Config) (placement.Placement, []model.Diagnostic) {
	firstDoor := true
	p, err := placement.Place(cfg, m.placed, func(hint string) (string, error) {
		kind, number, _ := strings.Cut(hint, "/")
		if kind != "gateway" && kind != "own" {
			n, err := m.ports.port(hint)
			return loopback(n), err
		}
		server, err := strconv.Atoi(number[strings.LastIndexByte(number, '/')+1:])
		if err != nil {
			return "", fmt.Errorf("no port in %q: %w", hint, err)
		}
		port := placement.GatewayPort(server)
		if firstDoor && len(m.placed.Gateways) == 0 && m.o.GatewayPort > 0 {
			port = m.o.GatewayPort
		}
		firstDoor = false
		if m.o.GatewayPort == 0 {
			n, err := m.ports.port(hint)
			return loopback(n), err
		}
		if other := m.ports.owner(port); other != "" && other != hint { // another gateway of ours
			n, err := m.ports.port(hint)
			return loopback(n), err
		}
		if err := m.ports.take(hint, port); err != nil {
			if kind == "own" && port != m.o.GatewayPort { // there is no one port that people expect it on
				n, err := m.ports.port(hint)
				return loopback(n), err
			}
			var why syscall.Errno
			if errors.As(err, &why) {
				err = why
			}
			return "", &busyError{server, port, holder(port), err}
		}
		return loopback(port), nil
	})
	if err == nil {
		return p, nil
	}
	d := model.Diagnostic{Code: codePort, Severity: model.Error, Message: err.Error()}
	var busy *busyError
	if errors.As(err, &busy) {
		d.Message = busy.Error()
		d.Hint = "stop what uses it, or take another with `malha up --gateway-port N`; 0 is any that is free"
		if errors.Is(busy.err, syscall.EACCES) {
			d.Hint = "ports below 1024 need privileges: take another with `malha up --gateway-port N`"
		}
		for i := range cfg.Gateways {
			for _, s := range cfg.Gateways[i].Servers {
				if s.Port == busy.server {
					d.Origin = s.Origin
				}
			}
		}
	}
	return placement.Placement{}, []model.Diagnostic{d}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
