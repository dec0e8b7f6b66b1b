package h2

// State is a stream's place in the state machine of RFC 9113 section 5.1. There is no reserved state, as neither side
// pushes.
type State uint8

// The states.
const (
	Idle State = iota
	Open
	HalfClosedLocal  // we sent END_STREAM
	HalfClosedRemote // the peer did
	Closed
)

// Receive is a HEADERS or DATA frame from the peer. Its error is a StreamError; on an idle stream only HEADERS come here.
func (s State) Receive(end bool) (State, error) {
	switch s {
	case Idle:
		if end {
			return HalfClosedRemote, nil
		}
		return Open, nil
	case Open:
		if end {
			return HalfClosedRemote, nil
		}
		return Open, nil
	case HalfClosedLocal:
		if end {
			return Closed, nil
		}
		return HalfClosedLocal, nil
	}
	return s, StreamError{StreamClosed, "frame after END_STREAM"}
}

// Send is a HEADERS or DATA frame of ours; ok is false when it may not be sent.
func (s State) Send(end bool) (next State, ok bool) {
	switch s {
	case Idle, Open:
		if end {
			return HalfClosedLocal, true
		}
		return Open, true
	case HalfClosedRemote:
		if end {
			return Closed, true
		}
		return HalfClosedRemote, true
	}
	return s, false
}

// RemoteDone reports whether the peer sends no more.
func (s State) RemoteDone() bool { return s == HalfClosedRemote || s == Closed }

// LocalDone reports whether we send no more.
func (s State) LocalDone() bool { return s == HalfClosedLocal || s == Closed }
