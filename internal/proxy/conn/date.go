package conn

import (
	"sync/atomic"
	"time"

	"github.com/malha-mesh/malha/internal/proxy/message"
)

// second is a Date as messages have it. It is immutable.
type second struct {
	unix int64
	text []byte
}

// lastSecond is the second in which a Date was last made: many responses share it.
var lastSecond atomic.Pointer[second]

var nameDate = []byte("date")

// dated gives a final response the time at which it goes out, if it has none: who forwards one that came without must do so
// (RFC 9110 section 6.6.1).
func dated(r *message.Response) {
	if r.Status < 200 {
		return
	}
	for i := range r.Fields {
		if n := r.Fields[i].Name; len(n) == 4 && string(n) == "date" {
			return
		}
	}
	now := time.Now()
	s := lastSecond.Load()
	if s == nil || s.unix != now.Unix() {
		s = &second{now.Unix(), message.AppendDate(nil, now)}
		lastSecond.Store(s)
	}
	r.Fields = append(r.Fields, message.Field{Name: nameDate, Value: s.text})
}
