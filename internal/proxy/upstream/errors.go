package upstream

import (
	"errors"
	"fmt"
)

// The reasons for which Acquire and Dial find no connection, for errors.Is; see also ConnectError. A deadline that
// passes while waiting is stream.ErrDeadline.
var (
	// ErrNoHealthy means that the cluster has no endpoint that may be used (response flag UH).
	ErrNoHealthy = errors.New("no healthy endpoint")
	// ErrOverflow means that a circuit limit of the cluster was passed (response flag UO).
	ErrOverflow = errors.New("circuit limit passed")
	// ErrClosed means that the Set was closed: the proxy is shutting down.
	ErrClosed = errors.New("upstreams are closed")
)

// ConnectError means that no connection to the endpoint that was picked could be made (response flag UF). Nothing
// was sent, so the request may go elsewhere.
type ConnectError struct {
	Endpoint *Endpoint
	Err      error
}

// Error says which endpoint and why.
func (e *ConnectError) Error() string {
	return fmt.Sprintf("connect to %s: %v", e.Endpoint.Address(), e.Err)
}

// Unwrap returns the cause.
func (e *ConnectError) Unwrap() error { return e.Err }
