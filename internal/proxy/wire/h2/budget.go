package h2

// Budget bounds what a peer can make a connection do for nothing: a number of free acts, which useful acts and time
// earn back. It is a token bucket whose clock is looked at only when it runs dry.
type Budget struct {
	left, limit int64
	perSecond   int64
	last        int64 // nanoseconds of the last refill
}

// NewBudget returns a full budget of limit acts, which grows by perSecond. now is in nanoseconds.
func NewBudget(limit, perSecond int, now int64) Budget {
	return Budget{left: int64(limit), limit: int64(limit), perSecond: int64(perSecond), last: now}
}

// Earn gives n acts back.
func (b *Budget) Earn(n int) { b.left = min(b.left+int64(n), b.limit) }

// Spend takes n acts and reports false when there are none; now is called only then.
func (b *Budget) Spend(n int, now func() int64) bool {
	if b.left >= int64(n) {
		b.left -= int64(n)
		return true
	}
	b.grow(now())
	if b.left < int64(n) {
		return false
	}
	b.left -= int64(n)
	return true
}

// Low reports whether less than a quarter is left; now is called only when it looks so.
func (b *Budget) Low(now func() int64) bool {
	if b.left >= b.limit/4 {
		return false
	}
	b.grow(now())
	return b.left < b.limit/4
}

func (b *Budget) grow(now int64) {
	if grown := (now - b.last) / 1e9 * b.perSecond; grown > 0 {
		b.left = min(b.left+grown, b.limit)
		b.last = now
	}
}
