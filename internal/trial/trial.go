// Package trial runs the tests that users write about their rules: a request, and what should become of it.
//
// In come test files (kind Test of malha.dev) and an explain.Mesh; out go Results. It is pure: no request is sent, each
// case asks the router and the authorizer over the plans, thousands in a second. Reading files, compiling the manifests
// under test and printing is the caller's part. Mistakes in a test file become model.Diagnostic values with their line.
package trial

import (
	"encoding/json"
	"net/netip"
	"path"
	"reflect"
	"sync"

	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Group, Version and Kind are those of a test.
const (
	Group   = "malha.dev"
	Version = "v1alpha1"
	Kind    = "Test"
)

// Suite is one object of kind Test.
type Suite struct {
	Name   ident.Name
	Origin ident.Origin
	Files  []string // manifests under test; relative ones are resolved against the folder of the test file
	Cases  []Case
}

// Case is one request from one or several senders, and what should become of it.
type Case struct {
	Name    string
	Origin  ident.Origin
	From    []string
	Request explain.Request
	Expect  Expectation
}

// Expectation is a conjunction: every field that is set must hold.
type Expectation struct {
	Workload  string                 `json:"workload"`  // [NS/]NAME whose program answers, always
	Version   string                 `json:"version"`   // label of that workload
	Subset    string                 `json:"subset"`    // of the destination
	Service   string                 `json:"service"`   // host, or the name of a service, of the destination
	Split     map[string]Share       `json:"split"`     // by subset, version, workload, locality, outside address, or status of a proxy's answer
	Status    *int                   `json:"status"`    // that a proxy answers; an application's is not foreseen
	Flags     string                 `json:"flags"`     // of that answer, "UAEX"
	Denied    *bool                  `json:"denied"`    // by authorization
	DeniedBy  string                 `json:"deniedBy"`  // [NS/]NAME of the DENY policy that matches, or of an ALLOW policy that does not
	AllowedBy string                 `json:"allowedBy"` // [NS/]NAME of the ALLOW policy that matches
	Redirect  string                 `json:"redirect"`  // Location
	Body      *string                `json:"body"`      // of a direct response
	Rule      string                 `json:"rule"`      // name of the rule, or its origin: "VirtualService/default/reviews http[0]"
	Timeout   *manifest.Duration     `json:"timeout"`   // 0s: none
	Retries   *int                   `json:"retries"`   // beyond the first attempt
	Path      string                 `json:"path"`      // as the destination sees it
	Authority string                 `json:"authority"` // as the destination sees it
	MTLS      *bool                  `json:"mtls"`      // mutual TLS to every endpoint
	Fault     *Fault                 `json:"fault"`
	Mirrors   *map[string]Percentage `json:"mirrors"` // by service; {}: none

	Server   string             `json:"server"`   // that a TLS connection chooses by its name, "*.example.com"
	TLS      TLS                `json:"tls"`      // what becomes of TLS there
	External string             `json:"external"` // host:port outside the mesh that answers, always
	CORS     *bool              `json:"cors"`     // the rule's policy allows the origin
	Limits   *[]string          `json:"limits"`   // [NS/]NAME of the rate limits that count the request, no others; []: none
	Hash     *string            `json:"hash"`     // what chooses the endpoint: "header x-user"; "": nothing
	Session  *string            `json:"session"`  // what keeps the endpoint: "cookie NAME"; "": nothing
	Balancer string             `json:"balancer"` // of every destination: "maglev"
	Response *manifest.Duration `json:"response"` // timeout of the response head; 0s: none
	Idle     *manifest.Duration `json:"idle"`     // 0s: the default
	PerTry   *manifest.Duration `json:"perTry"`   // timeout of each attempt; 0s: that of the rule
}

// TLS is what becomes of a TLS connection at a proxy.
type TLS string

// The fates.
const (
	TLSEnded  TLS = "ended"
	TLSPassed TLS = "passed"
)

// Fault is an expected fault.
type Fault struct {
	Delay        *manifest.Duration `json:"delay"`
	DelayPercent *Percentage        `json:"delayPercent"`
	Abort        *int               `json:"abort"` // status
	AbortPercent *Percentage        `json:"abortPercent"`
}

// spec is the spec of a Test.
type spec struct {
	Files []string   `json:"files"`
	Cases []caseSpec `json:"cases"`
}

type caseSpec struct {
	Name    string                     `json:"name"`
	From    manifest.OneOrMany[string] `json:"from"`
	Request string                     `json:"request"` // "[METHOD] URL"
	Headers map[string]string          `json:"headers"`
	Client  string                     `json:"client"`
	Expect  *Expectation               `json:"expect"`
}

// specType is the schema of spec. A share is a number, or a text such as "10 ± 2".
var specType = sync.OnceValue(func() *manifest.Type {
	anything := manifest.FromGo(reflect.TypeFor[any](), nil)
	return manifest.FromGo(reflect.TypeFor[spec](), map[reflect.Type]*manifest.Type{
		reflect.TypeFor[Share]():      anything,
		reflect.TypeFor[Percentage](): anything,
	})
})

// Parse reads the Tests of a file; objects of other kinds are not looked at.
func Parse(file string, data []byte) ([]Suite, []model.Diagnostic) {
	objects, ds := manifest.Parse(file, data)
	var r manifest.Report
	r.Add(ds...)
	kind := manifest.Kind{Group: Group, Versions: []string{Version}, Kind: Kind, Type: specType, Fields: manifest.Work("", "files", "cases")}
	var out []Suite
	for i := range objects {
		o := &objects[i]
		if o.Group() != Group || o.Kind != Kind {
			continue
		}
		if o.Version() != Version {
			r.Error(manifest.CodeUnknownKind, o.Root().Field("apiVersion"), "write "+Group+"/"+Version, "Test is not known in %s", o.APIVersion)
			continue
		}
		if body, ok := kind.Check(o, &r); ok {
			out = append(out, suite(o, body, &r))
		}
	}
	return out, r.Diagnostics()
}

func suite(o *manifest.Object, body []byte, r *manifest.Report) Suite {
	s := Suite{Name: o.Name, Origin: o.Origin}
	at := o.Spec()
	var in spec
	if err := json.Unmarshal(body, &in); err != nil {
		r.Error(manifest.CodeWrongType, at, "a share is a number, or a text such as \"10 ± 2\"", "cannot read the test: %v", err)
		return s
	}
	for _, f := range in.Files {
		if !path.IsAbs(f) {
			f = path.Join(path.Dir(o.Origin.File), f)
		}
		s.Files = append(s.Files, f)
	}
	if len(in.Cases) == 0 {
		r.Error(manifest.CodeRequired, at.Field("cases"), "add cases: [...]", "the test has no cases")
	}
	for i := range in.Cases {
		s.Cases = append(s.Cases, in.Cases[i].read(at.Field("cases").Index(i), r))
	}
	return s
}

func (c *caseSpec) read(at manifest.Cursor, r *manifest.Report) Case {
	out := Case{Name: c.Name, Origin: at.Origin(), From: c.From}
	if out.Name == "" {
		out.Name = c.Request
	}
	if len(c.From) == 0 {
		r.Error(manifest.CodeRequired, at.Field("from"), "add from: WORKLOAD, or gateway", "the case names no sender")
	}
	if c.Request == "" {
		r.Error(manifest.CodeRequired, at.Field("request"), "add request: GET http://SERVICE:PORT/PATH", "the case has no request")
	} else if err := out.request(c.Request); err != nil {
		r.Error(manifest.CodeBadValue, at.Field("request"), "write it as METHOD URL", "%v", err)
	}
	for name, value := range c.Headers {
		h, err := explain.ParseHeader(name + ": " + value)
		if err != nil {
			r.Error(manifest.CodeBadValue, at.Field("headers").Key(name), "", "%v", err)
		}
		out.Request.Headers = append(out.Request.Headers, h)
	}
	sortHeaders(out.Request.Headers)
	if c.Client != "" {
		a, err := netip.ParseAddr(c.Client)
		if err != nil {
			r.Error(manifest.CodeBadValue, at.Field("client"), "", "%q is not an IP address", c.Client)
		}
		out.Request.Client = a
	}
	if c.Expect == nil || reflect.ValueOf(*c.Expect).IsZero() {
		r.Error(manifest.CodeRequired, at.Field("expect"), "add expect: {...}", "the case expects nothing, so it could not fail")
	} else {
		out.Expect = *c.Expect
	}
	if e := out.Expect; e.TLS != "" && e.TLS != TLSEnded && e.TLS != TLSPassed {
		r.Error(manifest.CodeBadEnum, at.Field("expect").Field("tls"), "write ended or passed", "TLS is ended or passed, not %q", e.TLS)
	}
	return out
}
