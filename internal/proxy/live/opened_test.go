package live

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
)

func TestWhyAnAddressIsNotOpened(t *testing.T) {
	for _, c := range []struct {
		errno syscall.Errno
		piece bool
		want  string
	}{
		{syscall.EADDRINUSE, true, "is another program using 127.0.0.1:1?"},
		{syscall.EADDRNOTAVAIL, true, "cannot assign requested address"},
		{syscall.EMFILE, false, "ulimit -n"},
	} {
		err := notOpened("listener", "x", "127.0.0.1:1", &net.OpError{Op: "listen", Err: c.errno})
		var p *PieceError
		if errors.As(err, &p) != c.piece || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.errno) {
			t.Errorf("%v: %v, which is to be of a piece: %v", c.errno, err, c.piece)
		}
	}
}
