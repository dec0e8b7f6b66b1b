package conn

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/malha-mesh/malha/internal/proxy/message"
	"github.com/malha-mesh/malha/internal/proxy/stream"
	"github.com/malha-mesh/malha/internal/proxy/wire/h2"
)

// After any exchanges, whole, cut short by either side or never read, both ends of a connection believe the same windows, and nothing of
// what a window took is lost; or the connection would carry less and less, and at last nothing.
func TestWindowsAgree(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) { agree(t, seed) })
		if t.Failed() {
			return
		}
	}
}

func agree(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	config := func() *Config {
		cfg := Defaults()
		cfg.ConnectionWindow = h2.InitialWindow * uint32(1+r.IntN(3))
		cfg.StreamWindow = h2.InitialWindow + uint32(r.IntN(1<<17))
		return cfg
	}
	near, far := net.Pipe()
	handler := handlerFunc(func(d stream.Downstream, _ *Peer) {
		id, _ := d.Request().Fields.Get("x-seed")
		r := rand.New(rand.NewPCG(seed, uint64(id[0])<<1|1))
		read := func(pieces int) {
			for range pieces {
				if _, err := d.ReadBody(); err != nil {
					return
				}
			}
		}
		read(r.IntN(3) * r.IntN(10))
		if r.IntN(5) == 0 {
			d.Reset(stream.Cancelled)
			return
		}
		_ = d.WriteHead(&message.Response{Status: 200, HasBody: true, Length: message.Unknown}, false)
		_ = d.WriteBody(make([]byte, r.IntN(200_000)), r.IntN(8) > 0)
		read(r.IntN(2) * 1000)
	})
	scfg, ccfg := config(), config()
	server := newH2conn(near, scfg, &h2server{h: handler, peer: &Peer{}, work: make(chan *h2stream)})
	var serving, asking sync.WaitGroup
	serving.Go(func() { // as ServeH2
		server.in = make([]byte, inSize)
		server.hello()
		err := server.preface()
		if err == nil {
			err = server.read()
		}
		server.finish(err)
	})
	c := NewH2Client(far, ccfg)
	serving.Go(func() { _ = c.Run() })
	for i := range 1 + r.IntN(20) {
		u, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		asking.Go(func() {
			defer u.Close()
			r := rand.New(rand.NewPCG(seed, uint64(i)<<1))
			req := request("POST", "/", field("x-seed", string(rune('A'+i))))
			req.Length = message.Unknown
			body := make([]byte, r.IntN(200_000))
			var sending sync.WaitGroup
			sending.Go(func() {
				if err := u.WriteHead(req, false); err == nil {
					_ = u.WriteBody(body, r.IntN(8) > 0)
					_ = u.Flush()
				}
			})
			defer func() { u.Cancel(stream.Cancelled); sending.Wait() }()
			pieces := 1000
			if i%4 == 0 {
				pieces = i
			}
			var resp message.Response
			for err := error(nil); pieces > 0 && !errors.Is(err, io.EOF); pieces-- {
				if resp.Status == 0 {
					err = u.ReadHead(&resp)
				} else {
					_, err = u.ReadBody()
				}
				if err != nil {
					return
				}
			}
		})
	}
	asking.Wait()
	synctest.Wait()

	left := func(c *h2conn) (send, avail, owed, size int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.streams) > 0 || c.active != 0 || len(c.out) > 0 || c.err != nil {
			t.Errorf("seed %d: %d streams are left, %d in use, %d bytes to write: %v", seed, len(c.streams), c.active, len(c.out), c.err)
		}
		w := reflect.ValueOf(c.recvWin)
		return reflect.ValueOf(c.sendWin).FieldByName("n").Int(), w.FieldByName("avail").Int(), w.FieldByName("owed").Int(), w.FieldByName("size").Int()
	}
	sends, savail, sowed, ssize := left(server)
	cends, cavail, cowed, csize := left(c.c)
	if sends != cavail || cends != savail {
		t.Errorf("seed %d: the server may send %d, of which the client knows %d; the client %d, of which the server knows %d", seed, sends, cavail, cends, savail)
	}
	if savail+sowed != ssize || cavail+cowed != csize {
		t.Errorf("seed %d: of the server's window of %d %d are left and %d owed; of the client's of %d %d and %d", seed, ssize, savail, sowed, csize, cavail, cowed)
	}
	c.CloseConn()
	serving.Wait()
}
