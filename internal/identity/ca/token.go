package ca

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// Audience is whom tokens are for. A token for anybody else is refused.
const Audience = "malha-ca"

// maxToken is the longest token that is looked at, in bytes. Kubernetes' are about 1 KiB.
const maxToken = 16 << 10

// Authenticator says who the sender of a token is. Errors are ErrToken when the token is to blame.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (Workload, error)
}

// Tokens issues and checks the tokens of one machine: whoever starts a proxy hands it one, and the proxy shows it with its
// first signing request. They are JSON Web Signatures with HMAC-SHA256 (RFC 7515, RFC 7518 section 3.2) under a key that
// is made with Tokens and never leaves it: a restarted control plane refuses the tokens of the one before it, and
// proxies that still have a certificate renew with that.
type Tokens struct {
	key [32]byte
	now func() time.Time
}

// NewTokens makes a key. now may be nil for time.Now.
func NewTokens(now func() time.Time) (*Tokens, error) {
	t := &Tokens{now: now}
	if now == nil {
		t.now = time.Now
	}
	if _, err := rand.Read(t.key[:]); err != nil {
		return nil, fmt.Errorf("ca: no random key: %w", err)
	}
	return t, nil
}

// String keeps the key out of logs.
func (t *Tokens) String() string { return "tokens" }

// GoString keeps the key out of logs.
func (t *Tokens) GoString() string { return "tokens" }

// tokenHeader is the only header that is issued or accepted: there is no algorithm to choose and none to be confused about.
const tokenHeader = `{"alg":"HS256","typ":"JWT"}`

// claims are the payload (RFC 7519 section 4.1).
type claims struct {
	Audience string              `json:"aud"`
	Subject  string              `json:"sub"` // SPIFFE id
	Issued   int64               `json:"iat"`
	Expires  int64               `json:"exp"`
	Node     ident.Name          `json:"node"`
	Labels   plan.WorkloadLabels `json:"labels"`
}

// Issue returns a token that proves w for ttl.
func (t *Tokens) Issue(w Workload, ttl time.Duration) (string, error) {
	if id, err := ident.ParseIdentity(w.Identity.URI()); err != nil || id != w.Identity {
		return "", fmt.Errorf("ca: no token for %q: it is not a workload identity", w.Identity.URI())
	}
	now := t.now()
	payload, err := json.Marshal(claims{
		Audience: Audience, Subject: w.Identity.URI(), Issued: now.Unix(), Expires: now.Add(ttl).Unix(), Node: w.Node, Labels: w.Labels,
	})
	if err != nil {
		return "", fmt.Errorf("ca: writing a token: %w", err)
	}
	signed := encode([]byte(tokenHeader)) + "." + encode(payload)
	return signed + "." + encode(t.mac(signed)), nil
}

// Authenticate returns whom Issue made the token for. The reason in an error says nothing that helps to guess a token.
func (t *Tokens) Authenticate(_ context.Context, token string) (Workload, error) {
	if len(token) > maxToken {
		return Workload{}, fmt.Errorf("%w: it is longer than %d bytes", ErrToken, maxToken)
	}
	dot := strings.LastIndexByte(token, '.')
	if dot < 0 {
		return Workload{}, fmt.Errorf("%w: it is not one of ours", ErrToken)
	}
	signed := token[:dot]
	mac, err := decode(token[dot+1:])
	// hmac.Equal takes the same time wherever the two differ. Nothing of the token is looked at before.
	if err != nil || !hmac.Equal(mac, t.mac(signed)) {
		return Workload{}, fmt.Errorf("%w: it is not signed by this control plane (was it restarted? then restart the proxy)", ErrToken)
	}
	header, payload, _ := strings.Cut(signed, ".")
	if header != encode([]byte(tokenHeader)) {
		return Workload{}, fmt.Errorf("%w: its header is not ours", ErrToken)
	}
	raw, err := decode(payload)
	if err != nil {
		return Workload{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	var c claims
	if err := json.Unmarshal(raw, &c); err != nil {
		return Workload{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	if c.Audience != Audience {
		return Workload{}, fmt.Errorf("%w: it is for %q, not for %q", ErrToken, c.Audience, Audience)
	}
	if expires := time.Unix(c.Expires, 0); !t.now().Before(expires) {
		return Workload{}, fmt.Errorf("%w: it expired at %s", ErrToken, expires.UTC().Format(time.RFC3339))
	}
	id, err := ident.ParseIdentity(c.Subject)
	if err != nil {
		return Workload{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return Workload{Node: c.Node, Identity: id, Labels: c.Labels}, nil
}

func (t *Tokens) mac(signed string) []byte {
	h := hmac.New(sha256.New, t.key[:])
	h.Write([]byte(signed))
	return h.Sum(nil)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func decode(s string) ([]byte, error) { return base64.RawURLEncoding.Strict().DecodeString(s) }
