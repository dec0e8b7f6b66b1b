package conn

import "sync/atomic"

// Memory is what connections may use of a process's memory: all of them share one. Two things are counted as they grow,
// because the collector tells of them too late: bodies that came over HTTP/2 and wait for a reader, by their buffers, and
// connections and streams, by what one costs. Beyond them whoever watches the process says when it is short of
// memory (SetShort). A nil Memory never runs out.
type Memory struct {
	limit   int64
	bodies  atomic.Int64 // bytes of buffers
	taken   atomic.Int64
	refused atomic.Uint64 // bodies
	short   atomic.Bool
}

// What one of them costs, its goroutines' stacks and its side towards the endpoint included, as measured with hundreds that
// wait for an endpoint; and the parts of the limit that they may have together, and that bodies may have.
const (
	ConnectionCost = 12 << 10
	HTTP2Cost      = 24 << 10 // of a connection, in addition
	streamCost     = 24 << 10

	takenShare = 2 // 1/2
	bodyShare  = 4 // 1/4
)

// NewMemory returns the Memory of a process that may have limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }

// Short reports whether nothing new shall be begun.
func (m *Memory) Short() bool {
	return m != nil && (m.short.Load() || m.taken.Load() > m.limit/takenShare)
}

// SetShort is for whoever watches the process.
func (m *Memory) SetShort(short bool) { m.short.Store(short) }

// Take counts n bytes as taken; fewer than none gives them back.
func (m *Memory) Take(n int64) {
	if m != nil {
		m.taken.Add(n)
	}
}

// Bodies returns how many bytes the buffers of bodies have, and how many bodies were ended because there was no room for more of
// them.
func (m *Memory) Bodies() (bytes int64, ended uint64) {
	if m == nil {
		return 0, 0
	}
	return m.bodies.Load(), m.refused.Load()
}

// room reports whether more of a body may be kept. The last third is for bodies of which nothing waits yet: who is slow is what
// takes the memory, and a small body passes in one piece.
func (m *Memory) room(waits bool) bool {
	if m == nil {
		return true
	}
	limit := m.limit / bodyShare
	if !waits {
		limit += limit / 2
	}
	if m.bodies.Load() < limit {
		return true
	}
	m.refused.Add(1)
	return false
}

// keep counts a buffer of a body that is taken (n > 0) or given back.
func (m *Memory) keep(n int) {
	if m != nil {
		m.bodies.Add(int64(n))
	}
}
