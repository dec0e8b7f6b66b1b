// Package wire holds the words of the control stream: the messages between control plane and proxy, their framing, and the
// pieces that a plan is cut into and put together from.
//
// It is pure. In and out are bytes (a frame is appended to a buffer, or read from an io.Reader that the caller owns) and plan
// values; sockets, time and state of a conversation belong to wire/serve (control plane) and wire/watch (proxy). Every
// message is spelled by wire/codec, so a field that the reader does not know is an error there.
//
// The conversation, over TLS 1.3 with ALPN "malha/1" (docs/design/0002-control-stream.md):
//
//	proxy                                 control plane
//	SignRequest (CSR, token)       ─▶
//	                               ◀─    SignResponse (chain, roots); the connection ends
//
//	Hello (node, what I have)      ─▶    with a client certificate that was issued to this node
//	                               ◀─    Delta nonce=1 … Delta nonce=1 complete
//	Ack 1 | Nack 1 (piece, reason) ─▶
//	                               ◀─    Delta nonce=2 complete
//	Heartbeat                     ◀─▶    Heartbeat
//
// At most one delta is in flight; what changes meanwhile is merged into the next one. Refusal is the last word of a
// control plane that hangs up.
package wire

import (
	"errors"
	"fmt"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// ALPN is the application protocol of the control stream. Its number changes when a message changes in a way that an older
// peer cannot read. The port is shared: other protocols can be offered beside it.
const ALPN = "malha/1"

// ControlPlane returns the identity of the control plane of a trust domain.
func ControlPlane(trustDomain string) ident.Identity {
	return ident.Identity{TrustDomain: trustDomain, Namespace: "malha-system", ServiceAccount: "malhad"}
}

// Type says what the body of a frame is. Never reuse a number.
type Type uint8

// The messages.
const (
	TypeHeartbeat    Type = 1 // both ways; no body
	TypeRefusal      Type = 2 // to the proxy
	TypeSignRequest  Type = 3 // to the control plane
	TypeSignResponse Type = 4 // to the proxy
	TypeHello        Type = 5 // to the control plane
	TypeDelta        Type = 6 // to the proxy
	TypeAck          Type = 7 // to the control plane
	TypeNack         Type = 8 // to the control plane
)

var typeNames = [...]string{
	TypeHeartbeat: "heartbeat", TypeRefusal: "refusal", TypeSignRequest: "sign request", TypeSignResponse: "sign response",
	TypeHello: "hello", TypeDelta: "delta", TypeAck: "ack", TypeNack: "nack",
}

// String returns the name of the message.
func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("message %d", uint8(t))
}

// Refusal is why the control plane hangs up.
type Refusal struct {
	Reason string `plan:"1"` // for the operator of the proxy
	// Final says that trying again with the same credentials cannot help.
	Final bool `plan:"2"`
	// Again says that nothing is wrong: the proxy is to connect again at once, to whichever replica.
	Again bool `plan:"3"`
	// Renew says that it is to ask for a certificate first, with which the roots come.
	Renew bool `plan:"4"`
}

// Error makes a Refusal the error that it causes.
func (r *Refusal) Error() string { return "the control plane refused: " + r.Reason }

// SignRequest asks for a certificate. Who asks is proved by Token or, without one, by the client certificate of the
// connection; nothing in CSR but the public key counts.
type SignRequest struct {
	CSR   []byte `plan:"1"` // PKCS #10, DER
	Token string `plan:"2"`
}

// SignResponse is the certificate, and the roots to verify others by.
type SignResponse struct {
	Chain [][]byte `plan:"1"` // DER, leaf first
	Roots [][]byte `plan:"2"` // DER, all roots of the mesh: more than one while a root is replaced
}

// Hello opens a stream: who asks, and what it has already.
type Hello struct {
	Node    ident.Name `plan:"1"` // must be the node of the client certificate
	Role    plan.Role  `plan:"2"`
	Version string     `plan:"3"` // of the proxy program, for people
	Have    []Have     `plan:"4"` // sorted by Ref
	// Bundle names the roots that the proxy verifies by; zero: they did not come from a control plane.
	Bundle Hash `plan:"5"`
}

// Have names one piece that a proxy has.
type Have struct {
	Ref  Ref  `plan:"1"`
	Hash Hash `plan:"2"`
}

// Delta is a change from what the proxy acknowledged last. A change that is too long for one frame comes in several
// with the same nonce, and is one change: nothing is in force before the one with Complete.
type Delta struct {
	Nonce    uint64  `plan:"1"`
	Set      []Piece `plan:"2"`
	Removed  []Ref   `plan:"3"`
	Complete bool    `plan:"4"`
}

// Ack says that the delta is in force.
type Ack struct {
	Nonce uint64 `plan:"1"`
}

// Nack says that nothing of the delta is in force, and which pieces are to blame. Without any, all of it is.
type Nack struct {
	Nonce    uint64      `plan:"1"`
	Reason   string      `plan:"2"` // for the operator
	Rejected []Rejection `plan:"3"`
}

// Rejection is a piece that a proxy cannot use, and why.
type Rejection struct {
	Ref    Ref    `plan:"1"`
	Reason string `plan:"2"`
}

// Error makes a Rejection the error of the piece.
func (r Rejection) Error() string { return r.Ref.String() + ": " + r.Reason }

// ErrFrame is the cause of errors of framing: a length over the limit, a message that is not expected, a body that cannot be read.
var ErrFrame = errors.New("wire: protocol error")

// Summary returns the rejections as one line of at most three.
func Summary(rs []Rejection) string {
	var b strings.Builder
	for i, r := range rs {
		if i == 3 {
			fmt.Fprintf(&b, "; and %d more", len(rs)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(r.Error())
	}
	return b.String()
}
