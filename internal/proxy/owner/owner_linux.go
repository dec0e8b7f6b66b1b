// Package owner tells whose program is at the other end of a connection from the same machine.
//
// In: the two addresses of a TCP connection that was accepted, or a unix socket. Out: nil when the program that opened it belongs to
// the user of this process or to root, else who it is. The kernel is asked (sock_diag(7), unix(7)), which answers everybody
// without privileges; the client is not. It is for machines that people share: a port of 127.0.0.1 is open to all of them, and what
// a sidecar sends, it sends with its workload's identity.
//
// A Guard may be used from any goroutine and starts none. Neighbours: app/proxy gives it to the outbound listeners
// (proxy/server) and to the admin port (proxy/admin) where it was told to; proxy/handover and app/local ask about their sockets.
package owner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// ErrUnknown says that the kernel does not know whose a connection is: its program has closed it already, or it is not of this
// machine.
var ErrUnknown = errors.New("nobody on this machine holds its other end any more")

// Stranger is who is refused.
type Stranger struct{ User, Own uint32 }

func (s *Stranger) Error() string {
	return fmt.Sprintf("it is from a program of user %d, and only those of user %d may", s.User, s.Own)
}

// OfSocket returns the process at the other end of a unix socket (unix(7) SO_PEERCRED). The error is a *Stranger when it belongs to
// somebody else. The mode of the socket's file says the same to the kernel; this is for folders that somebody else can write to.
func OfSocket(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, os.NewSyscallError("getsockopt", failed)
	}
	if own := uint32(os.Geteuid()); cred.Uid != own && cred.Uid != 0 {
		return 0, &Stranger{User: cred.Uid, Own: own}
	}
	return int(cred.Pid), nil
}

// Guard asks the kernel.
type Guard struct {
	own uint32

	mu  sync.Mutex
	fd  int
	seq uint32
	buf [512]byte
}

// Open returns a Guard for the user of this process. It fails where the kernel does not tell of a connection of our own.
func Open() (*Guard, error) {
	g, err := ask()
	if err == nil {
		if err = g.try(); err == nil {
			return g, nil
		}
		_ = g.Close()
	}
	return nil, fmt.Errorf("the kernel does not tell whose connections are: %w", err)
}

// try asks about a connection to ourselves: sandboxes have the call, and no answer.
func (g *Guard) try() error {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return g.Check(c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort())
}

func ask() (*Guard, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, syscall.NETLINK_INET_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// The kernel answers before sendto(2) returns; whatever happens, nobody waits for long.
	wait := syscall.NsecToTimeval(time.Second.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		_ = syscall.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &Guard{own: uint32(os.Geteuid()), fd: fd}, nil
}

// Close gives the Guard's descriptor back. Check fails from then on.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	fd := g.fd
	g.fd = -1
	if fd < 0 {
		return nil
	}
	return os.NewSyscallError("close", syscall.Close(fd))
}

// Check returns nil when the program that has its end of a connection at remote may use what we serve at local. The error is a
// *Stranger when it belongs to somebody else.
func (g *Guard) Check(remote, local netip.AddrPort) error {
	s, err := g.find(remote, local)
	if err != nil {
		return err
	}
	switch {
	case s.inode == 0 && (s.user == 0 || g.own == 0):
		// The socket has lost its program, and with it, on most kernels, its user: 0 is not root's here. Who sends and is gone at once
		// must not pass for root.
		return ErrUnknown
	case s.user != g.own && s.user != 0:
		return &Stranger{User: s.user, Own: g.own}
	}
	return nil
}

// socket is what the kernel says of one.
type socket struct{ user, inode uint32 }

// Of sock_diag(7), linux/inet_diag.h and linux/sock_diag.h. All but ports and addresses are in the machine's byte order.
const (
	byFamily    = 20 // SOCK_DIAG_BY_FAMILY
	headerSize  = 16 // struct nlmsghdr
	idSize      = 48 // struct inet_diag_sockid
	requestSize = headerSize + 8 + idSize
	answerSize  = headerSize + 4 + idSize + 20 // with struct inet_diag_msg
	stateListen = 10                           // TCP_LISTEN
)

// find asks for the socket that is at remote and connected to local.
func (g *Guard) find(remote, local netip.AddrPort) (socket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return socket{}, errors.New("whose connections are is not asked for any more")
	}
	g.seq++
	n := binary.NativeEndian
	req := g.buf[:requestSize]
	clear(req)
	n.PutUint32(req[0:], requestSize)
	n.PutUint16(req[4:], byFamily)
	n.PutUint16(req[6:], syscall.NLM_F_REQUEST)
	n.PutUint32(req[8:], g.seq)
	body := req[headerSize:]
	body[0], body[1] = syscall.AF_INET6, syscall.IPPROTO_TCP
	src, dst := remote.Addr().Unmap(), local.Addr().Unmap()
	if src.Is4() && dst.Is4() {
		body[0] = syscall.AF_INET
	}
	n.PutUint32(body[4:], ^uint32(0)) // in whatever state
	id := body[8:]
	binary.BigEndian.PutUint16(id[0:], remote.Port())
	binary.BigEndian.PutUint16(id[2:], local.Port())
	copy(id[4:20], src.AsSlice())
	copy(id[20:36], dst.AsSlice())
	n.PutUint64(id[40:], ^uint64(0)) // INET_DIAG_NOCOOKIE, twice
	to := &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}
	if err := syscall.Sendto(g.fd, req, 0, to); err != nil {
		return socket{}, os.NewSyscallError("sendto", err)
	}
	ports := [4]byte(id[0:4])
	for {
		size, from, err := syscall.Recvfrom(g.fd, g.buf[:], 0)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return socket{}, os.NewSyscallError("recvfrom", err)
		}
		answer := g.buf[:size]
		if nl, ok := from.(*syscall.SockaddrNetlink); !ok || nl.Pid != 0 || size < headerSize+4 || n.Uint32(answer[8:]) != g.seq {
			continue // not the kernel, or late
		}
		body := answer[headerSize:]
		switch kind := n.Uint16(answer[4:]); {
		case kind == syscall.NLMSG_ERROR:
			errno := syscall.Errno(-int32(n.Uint32(body)))
			if errno == syscall.ENOENT {
				return socket{}, ErrUnknown
			}
			return socket{}, fmt.Errorf("asking the kernel whose a connection is: %w", errno)
		case kind != byFamily || size < answerSize:
			return socket{}, errors.New("asking the kernel whose a connection is: an answer that cannot be read")
		}
		// Where there is no such connection, the kernel answers with who listens at the address.
		if body[1] == stateListen || [4]byte(body[4:8]) != ports {
			return socket{}, ErrUnknown
		}
		end := body[4+idSize:]
		return socket{user: n.Uint32(end[12:]), inode: n.Uint32(end[16:])}, nil
	}
}
