package plan

import (
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/match"
)

// Action is what a policy does to requests that match it.
type Action string

// The actions, in the order they are asked: DENY, then ALLOW. AUDIT decides nothing.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
	Audit Action = "audit"
)

// Policy is one authorization policy (Istio AuthorizationPolicy semantics): a DENY policy that matches denies; if any
// ALLOW policy guards a listener, one of them must match. An ALLOW policy without rules therefore denies all.
type Policy struct {
	Name   string       `json:"name" plan:"1"` // "production/backend-policy"
	Action Action       `json:"action" plan:"2"`
	Rules  []PolicyRule `json:"rules,omitempty" plan:"3"` // any may match
	Origin ident.Origin `json:"origin,omitzero" plan:"4"`
	DryRun bool         `json:"dryRun,omitempty" plan:"5"`
}

// PolicyRule matches when one of From (if any), one of To (if any) and all of When match.
type PolicyRule struct {
	From   []Source     `json:"from,omitempty" plan:"1"`
	To     []Operation  `json:"to,omitempty" plan:"2"`
	When   []Condition  `json:"when,omitempty" plan:"3"`
	Origin ident.Origin `json:"origin,omitzero" plan:"4"`
}

// Source is a conjunction over the peer; the strings of one field are alternatives.
type Source struct {
	Principals    []match.String `json:"principals,omitempty" plan:"1"` // ident.Identity.Principal
	NotPrincipals []match.String `json:"notPrincipals,omitempty" plan:"2"`
	Namespaces    []match.String `json:"namespaces,omitempty" plan:"3"`
	NotNamespaces []match.String `json:"notNamespaces,omitempty" plan:"4"`
	IPBlocks      []string       `json:"ipBlocks,omitempty" plan:"5"` // CIDR or address of the TCP peer
	NotIPBlocks   []string       `json:"notIPBlocks,omitempty" plan:"6"`
}

// Operation is a conjunction over the request; the strings of one field are alternatives.
type Operation struct {
	Hosts      []match.String `json:"hosts,omitempty" plan:"1"` // case-insensitive
	NotHosts   []match.String `json:"notHosts,omitempty" plan:"2"`
	Ports      []int          `json:"ports,omitempty" plan:"3"` // workload port
	NotPorts   []int          `json:"notPorts,omitempty" plan:"4"`
	Methods    []match.String `json:"methods,omitempty" plan:"5"`
	NotMethods []match.String `json:"notMethods,omitempty" plan:"6"`
	Paths      []match.String `json:"paths,omitempty" plan:"7"` // canonical path, no query
	NotPaths   []match.String `json:"notPaths,omitempty" plan:"8"`
}

// Condition is one `when` entry.
type Condition struct {
	Key       string         `json:"key" plan:"1"` // request.headers[x], source.ip, source.namespace, source.principal, destination.ip, destination.port
	Values    []match.String `json:"values,omitempty" plan:"2"`
	NotValues []match.String `json:"notValues,omitempty" plan:"3"`
}
