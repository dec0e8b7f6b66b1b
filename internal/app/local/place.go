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

// place decides where everything listens under cfg. What runs, according to before, keeps its place. fresh is what got a port by it.
func (m *Mesh) place(cfg *model.Config, before placement.Placement) (p placement.Placement, fresh []string, ds []model.Diagnostic) {
	if d := m.crowded(cfg, before); d != nil {
		return p, nil, []model.Diagnostic{*d}
	}
	for i := range cfg.Workloads {
		if w := &cfg.Workloads[i]; w.Run == nil {
			for _, port := range w.Ports {
				m.ports.leave(port.Port)
			}
		}
	}
	firstDoor := true
	p, err := placement.Place(cfg, before, func(hint string) (string, error) {
		if !m.ports.has(hint) {
			fresh = append(fresh, hint)
		}
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
		if firstDoor && len(before.Gateways) == 0 && m.o.GatewayPort > 0 {
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
		return p, fresh, nil
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
	return placement.Placement{}, fresh, []model.Diagnostic{d}
}

// crowded says that cfg takes more ports than this machine has, before any of them is looked for; nil when it does not.
func (m *Mesh) crowded(cfg *model.Config, before placement.Placement) *model.Diagnostic {
	needed := 0
	local := map[string]int{} // listeners for service ports, by namespace
	_, err := placement.Place(cfg, before, func(hint string) (string, error) {
		if !m.ports.has(hint) {
			needed++
		}
		if of, ok := strings.CutPrefix(hint, "local/"); ok {
			namespace, _, _ := strings.Cut(of, "/")
			local[namespace]++
		}
		return "127.0.0.1:1", nil
	})
	free, all := m.ports.room()
	if err != nil || needed <= free {
		return nil // an error is place's to tell
	}
	d := &model.Diagnostic{
		Code: codeRoom, Severity: model.Error,
		Message: fmt.Sprintf("this takes %d more local ports, and of the %d that a mesh may have on this machine %d are left", needed, all, max(free, 0)),
		Hint:    "use fewer Services or Workloads on one machine",
	}
	most := ""
	for namespace, n := range local {
		if n > local[most] || n == local[most] && namespace < most {
			most = namespace
		}
	}
	if local[most] > 0 {
		workloads := 0
		for i := range cfg.Workloads {
			if cfg.Workloads[i].Name.Namespace == most {
				workloads++
			}
		}
		d.Message += fmt.Sprintf(": each of the %s of namespace %s has one for each service port of its namespace, which are %d of them",
			plural(workloads, "workload"), most, local[most])
		d.Hint = "put Services that these workloads do not call into other namespaces, or use fewer; a workload reaches those by name over HTTP_PROXY"
	}
	return d
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
