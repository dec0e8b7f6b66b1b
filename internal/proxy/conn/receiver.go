package conn

import (
	"errors"
	"io"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h1"
)

// receiver is what both ends of an HTTP/1 connection do with the bytes that they receive: it keeps those of a head where
// they are, and takes bodies apart. It does no I/O: who owns it reads from the socket into the room that it gives.
type receiver struct {
	in      []byte // the head of the current message stays in place until the exchange is over
	r, w    int    // in[r:w] is unread
	scan    h1.Scan
	body    h1.Body
	bodyBuf *[bodyBuffer]byte // body bytes beyond in; nil while in is enough
	br, bw  int               // bodyBuf[br:bw] is unread
}

// errHungry says that the next piece of a body has yet to be read from the socket.
var errHungry = errors.New("nothing of the body is here")

// piece returns the next piece of a body of which something was received, with io.EOF when it is the last. An error that is
// neither that nor errHungry means that the body is malformed: nobody can tell where it ends.
func (v *receiver) piece() ([]byte, error) {
	for {
		if v.body.Done() {
			return nil, io.EOF
		}
		var data []byte
		var n int
		var err error
		switch {
		case v.r < v.w:
			data, n, err = v.body.Next(v.in[v.r:v.w])
			v.r += n
		case v.br < v.bw:
			data, n, err = v.body.Next(v.bodyBuf[v.br:v.bw])
			v.br += n
		}
		switch {
		case err != nil:
			return nil, errors.Join(stream.ErrProtocol, err)
		case v.body.Done():
			return data, io.EOF
		case len(data) > 0:
			return data, nil
		case n == 0:
			return nil, errHungry
		}
	}
}

// BodyReady implements stream.Ready. It is exact: with a piece of a body all framing behind it that is here is taken too
// (h1.Body.Next), so what is left begins with data.
func (v *receiver) BodyReady() bool { return v.body.Done() || v.r < v.w || v.br < v.bw }

// bodyRoom returns the room for more of a body, or of a tunnel. Everything that was in it has been read.
func (v *receiver) bodyRoom() []byte {
	if v.bodyBuf == nil {
		v.bodyBuf = bodyBuffers.Get().(*[bodyBuffer]byte)
	}
	v.br, v.bw = 0, 0
	return v.bodyBuf[:]
}

// leftover returns what was received behind a head that made the connection a tunnel.
func (v *receiver) leftover() []byte {
	p := v.in[v.r:v.w]
	v.r = v.w
	return p
}

// headRoom lets in have space after w, keeping in[r:w].
func (v *receiver) headRoom(maxHead int) {
	if v.w < len(v.in) {
		return
	}
	if v.r > 0 {
		v.w = copy(v.in, v.in[v.r:v.w])
		v.r = 0
		return
	}
	grown := make([]byte, min(4*len(v.in), maxHead+len(v.in)))
	copy(grown, v.in[:v.w])
	v.in = grown
}

// dropBodyBuf gives the room for bodies back.
func (v *receiver) dropBodyBuf() {
	if v.bodyBuf != nil {
		bodyBuffers.Put(v.bodyBuf)
		v.bodyBuf = nil
	}
}

// pace holds a client to Config.MinBodyRate over one request body. Only time that we wait for the client counts: who is slow
// because the endpoint is does nothing wrong.
type pace struct {
	waited time.Duration
	got    int64
}

// until returns when the next byte has to be here, as a time at which nothing came for as long as is left.
func (p *pace) until(now time.Time, cfg *Config) time.Time {
	earned := time.Duration(float64(p.got) / float64(cfg.MinBodyRate) * float64(time.Second))
	return now.Add(max(cfg.BodyGrace+earned-p.waited, 0))
}

func (p *pace) note(waited time.Duration, n int) {
	p.waited += waited
	p.got += int64(n)
}
