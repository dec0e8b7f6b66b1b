package local

import (
	"time"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
	"github.com/malha-mesh/malha/internal/plan"
)

// The control socket speaks JSON over HTTP on a unix socket that only its user can open:
//
//	GET  /v1/status                      Status
//	GET  /v1/objects?kind=&namespace=    []Object
//	GET  /v1/plans?node=                 []plan.Plan, of all proxies or of those that are named
//	GET  /v1/analysis                    Analysis
//	POST /v1/apply?namespace=&dry-run=   []ManifestFile → Applied
//	POST /v1/delete?namespace=&dry-run=&missing-ok=
//	                                     []ManifestFile → Applied
//	GET  /v1/logs?source=&tail=&follow=  Line, one JSON object on each line
//	POST /v1/down                        answers once the mesh drains
//
// An answer other than 200 carries a Failure.

// Phase is where a mesh is in its life.
type Phase string

// The phases.
const (
	Starting Phase = "starting"
	Ready    Phase = "ready"
	Failed   Phase = "failed" // did not become ready in time; it keeps trying
	Stopping Phase = "stopping"
)

// Status is everything about a running mesh.
type Status struct {
	Running
	Version   string           `json:"version"`
	Bundled   bool             `json:"bundled,omitempty"` // the folder is the sample that comes with malha
	Phase     Phase            `json:"phase"`
	Problems  []string         `json:"problems,omitempty"` // what keeps it from being ready
	Waiting   []string         `json:"waiting,omitempty"`  // what it waits for while it stops
	Doors     []Door           `json:"doors,omitempty"`    // of the gateways
	Metrics   string           `json:"metrics"`            // URL
	Workloads []WorkloadStatus `json:"workloads"`
	Proxies   []ProxyStatus    `json:"proxies"`
	// Objects are the statuses of objects whose API has one, as their controllers would write them.
	Objects []ObjectStatus `json:"objects,omitempty"`
	// Diagnostics of the configuration that was offered last; errors mean that an older one is in force.
	Diagnostics []model.Diagnostic `json:"diagnostics,omitempty"`
}

// Door is an address of a gateway.
type Door struct {
	Gateway ident.Name `json:"gateway"`
	Port    int        `json:"port"` // as the Gateway says
	URL     string     `json:"url"`
}

// Health is how a program or proxy is doing.
type Health string

// The states of health.
const (
	HealthStarting Health = "starting"
	HealthReady    Health = "ready"
	HealthCrashing Health = "crashing"
	HealthDown     Health = "down" // runs, or should, and does not answer
	HealthStopping Health = "stopping"
)

// WorkloadStatus is one workload.
type WorkloadStatus struct {
	Name     ident.Name     `json:"name"`
	Version  string         `json:"version,omitempty"`
	Identity string         `json:"identity"`
	Health   Health         `json:"health"`
	Reason   string         `json:"reason,omitempty"`
	PID      int            `json:"pid,omitempty"`
	Restarts int            `json:"restarts"`
	Sync     Sync           `json:"sync"` // of its proxy
	App      map[int]string `json:"app,omitempty"`
	Origin   ident.Origin   `json:"origin"`
}

// Sync says whether a proxy runs the configuration in force.
type Sync string

// The sync states.
const (
	Synced     Sync = "SYNCED"
	Stale      Sync = "STALE" // something newer is on its way, or the proxy is not connected
	SyncFailed Sync = "ERROR" // the proxy refused something; Reason says what
)

// ProxyStatus is one proxy.
type ProxyStatus struct {
	Name        ident.Name `json:"name"`
	Role        plan.Role  `json:"role"`
	Sync        Sync       `json:"sync"`
	Reason      string     `json:"reason,omitempty"`
	Applied     time.Time  `json:"applied,omitzero"`     // when its configuration came into force
	CertExpires time.Time  `json:"certExpires,omitzero"` // of the certificate issued last
	Health      Health     `json:"health"`
	PID         int        `json:"pid,omitempty"`
	Restarts    int        `json:"restarts"`
	Forward     string     `json:"forward,omitempty"` // IP:port of the forward proxy
	Admin       string     `json:"admin,omitempty"`   // IP:port
}

// Object is one object of the configuration in force.
type Object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Name       ident.Name        `json:"name"`
	Labels     map[string]string `json:"labels,omitempty"`
	Applied    bool              `json:"applied,omitempty"` // by `malha apply`, not from the folder
	Origin     ident.Origin      `json:"origin"`
	YAML       string            `json:"yaml"` // as it was written
}

// Change is what happened to one object.
type Change struct {
	Kind   string     `json:"kind"`
	Name   ident.Name `json:"name"`
	Action string     `json:"action"`         // created, configured, unchanged, deleted, ignored
	Note   string     `json:"note,omitempty"` // "shadows reviews.yaml:12"
}

// Acts reports whether something is different after the change.
func (c *Change) Acts() bool { return c.Action != "unchanged" && c.Action != "ignored" }

// Applied is the outcome of an apply or a delete: all of it happened or, with errors among the diagnostics, none.
type Applied struct {
	Changes     []Change           `json:"changes,omitempty"`
	Diagnostics []model.Diagnostic `json:"diagnostics,omitempty"`
	Refused     []string           `json:"refused,omitempty"` // deletes that cannot be
	Synced      bool               `json:"synced"`            // all proxies run it
	Took        time.Duration      `json:"took"`
}

// OK reports whether the change is in force.
func (a *Applied) OK() bool { return len(a.Refused) == 0 && !model.HasErrors(a.Diagnostics) }

// Failure is the body of an answer that is not 200.
type Failure struct {
	Error string `json:"error"`
}

// MaxManifests bounds the manifests of one apply or delete, in bytes.
const MaxManifests = 48 << 20

// ManifestFile is a file that somebody applies or deletes.
type ManifestFile struct {
	Name string `json:"name"` // absolute path, or "stdin"
	Data []byte `json:"data"`
}
