package stream

import (
	"errors"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// Ask sends a request of the proxy's own, with a body unless that is nil, and reads the head of its answer. Of informational
// answers 15 are skipped. The caller sets deadlines before, reads the body after, and closes up.
func Ask(up Upstream, r *message.Request, body []byte) (*message.Response, error) {
	if err := up.WriteHead(r, body == nil); err != nil {
		return nil, err
	}
	if body != nil {
		if err := up.WriteBody(body, true); err != nil {
			return nil, err
		}
	}
	if err := up.Flush(); err != nil {
		return nil, err
	}
	var resp message.Response
	for range 16 {
		if err := up.ReadHead(&resp); err != nil {
			return nil, err
		}
		if resp.Status >= 200 {
			return &resp, nil
		}
	}
	return nil, errors.New("too many 1xx answers")
}
