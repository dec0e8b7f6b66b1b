package h2

// SendWindow is how much the peer lets us send, on a stream or on the connection (RFC 9113 section 6.9). It can be
// negative after the peer lowered SETTINGS_INITIAL_WINDOW_SIZE (section 6.9.2).
type SendWindow struct{ n int64 }

// NewSendWindow returns a window of n bytes.
func NewSendWindow(n uint32) SendWindow { return SendWindow{int64(n)} }

// Available returns how many bytes may be sent now, at least 0.
func (w *SendWindow) Available() int { return int(max(w.n, 0)) }

// Take uses n bytes up, n <= Available.
func (w *SendWindow) Take(n int) { w.n -= int64(n) }

// Add widens the window by an increment, or moves it by a change of the initial size. It reports false on overflow,
// which is an error of type FLOW_CONTROL_ERROR (section 6.9.1).
func (w *SendWindow) Add(n int64) bool {
	w.n += n
	return w.n <= MaxWindow
}

// RecvWindow is how much we let the peer send. Credit is given back as the consumer reads, so what a peer can make us hold
// is the window and nothing more.
type RecvWindow struct {
	size  int64 // how far it opens
	avail int64 // what the peer may still send
	owed  int64 // consumed, not yet given back
}

// NewRecvWindow returns a window of size bytes, of which the peer knows already.
func NewRecvWindow(size uint32) RecvWindow { return RecvWindow{size: int64(size), avail: int64(size)} }

// Receive uses n bytes up and reports false when the peer sent more than it may.
func (w *RecvWindow) Receive(n int) bool {
	w.avail -= int64(n)
	return w.avail >= 0
}

// Consume notes that n received bytes are held no longer and returns the increment to announce now: 0 until half of the
// window is owed, so that a small read costs no frame.
func (w *RecvWindow) Consume(n int) uint32 {
	w.owed += int64(n)
	if w.owed*2 < w.size {
		return 0
	}
	inc := w.owed
	w.owed = 0
	w.avail += inc
	return uint32(inc)
}
