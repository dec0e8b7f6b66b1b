package plan

import (
	"github.com/malha-mesh/malha/internal/ident"
)

// RateLimit bounds how many requests pass, counted in each proxy by itself. Requests above it are answered with 429.
type RateLimit struct {
	Name   string          `json:"name" plan:"1"` // "RateLimit/production/backend": of the object that it came from
	Rules  []RateLimitRule `json:"rules,omitempty" plan:"2"`
	Origin ident.Origin    `json:"origin,omitzero" plan:"3"`
}

// RateLimitRule is one bucket, or one for each value of By. A request must pass every rule that it matches.
type RateLimitRule struct {
	Matches  []Match  `json:"matches,omitempty" plan:"1"` // any; none: every request
	By       LimitBy  `json:"by,omitempty" plan:"2"`
	Header   string   `json:"header,omitempty" plan:"3"` // for ByHeader; requests without it share one bucket
	Requests uint32   `json:"requests" plan:"4"`         // in Per, steadily refilled
	Per      Duration `json:"per" plan:"5"`
	Burst    uint32   `json:"burst,omitempty" plan:"6"` // capacity of the bucket; 0: Requests
	// Overrides replace Requests for some identities (ByIdentity). Each identity still has a bucket of its own.
	Overrides []RateOverride `json:"overrides,omitempty" plan:"7"`
	Origin    ident.Origin   `json:"origin,omitzero" plan:"8"`
}

// RateOverride is the rate of some identities.
type RateOverride struct {
	Identities []ident.Identity `json:"identities" plan:"1"`
	Requests   uint32           `json:"requests" plan:"2"`
}

// LimitBy says what has a bucket of its own.
type LimitBy string

// What a bucket may be for. Strangers can make no more than a bounded number of buckets: the least used one goes.
const (
	ByAll      LimitBy = ""         // one for all requests
	ByIdentity LimitBy = "identity" // one for each identity of a peer; peers without one share one
	ByHeader   LimitBy = "header"   // one for each value of a header
	ByAddress  LimitBy = "address"  // one for each client address
)
