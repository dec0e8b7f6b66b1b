//go:build !linux || portable

package conn

// Lot is where idle HTTP/1 connections would be parked: only Linux has what it takes. Here every connection keeps its goroutine.
type Lot struct{}

// Park takes no connection in.
func (l *Lot) Park(*Parked, func()) bool { return false }

// End ends none.
func (l *Lot) End(*Parked) {}

// Open does nothing.
func (l *Lot) Open() {}

// Close does nothing.
func (l *Lot) Close() {}
