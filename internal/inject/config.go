// Package inject puts the proxy beside an application's containers.
//
// In: the mesh's settings (Config), a pod or the template of one, and what its namespace says. Out: a Result, which is a
// decision with its reason and an RFC 6902 patch; the webhook (internal/admit) answers with that patch, and `malha inject`
// applies the same one to files (internal/inject/document). It is pure. Injecting twice changes nothing, and Undo gives back
// what was there before. What a pod gets, and why, is docs/design/0020-kubernetes.md; the words of users are docs/injection.md.
package inject

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// Dialect names whose words are obeyed besides our own.
type Dialect string

// The dialects.
const (
	Malha   Dialect = "malha"
	Istio   Dialect = "istio"
	Linkerd Dialect = "linkerd"
)

// Names of what is added, and of the words for it.
const (
	ProxyContainer = "malha-proxy"
	InitContainer  = "malha-init"
	identityVolume = "malha-identity"
	stateVolume    = "malha-state"

	// LabelInject on a pod or a namespace is "enabled" or "disabled"; the pod's wins.
	LabelInject = "malha.dev/inject"
	// StatusAnnotation says that a pod is injected, and what was there before.
	StatusAnnotation = "malha.dev/status"
)

// User is the user and group of the proxy: what it sends itself is not captured.
const User = 1337

// Ports of the proxy in a pod.
const (
	AdminPort   = 15000
	DNSPort     = 15053
	MetricsPort = 15020
	HealthPort  = 15021
)

// Config is what the mesh says about injection. The JSON names are those of the chart's injection.yaml.
type Config struct {
	Image     string            `json:"image"`
	Version   string            `json:"version,omitempty"` // of the injector, for StatusAnnotation; "" is the tag of Image
	Pull      corev1.PullPolicy `json:"pullPolicy,omitempty"`
	Namespace string            `json:"namespace,omitempty"`   // of the mesh; nothing is injected there
	Control   string            `json:"control,omitempty"`     // host:port of the control plane; "" is malhad in Namespace
	Trust     string            `json:"trustDomain,omitempty"` // of the mesh; "" is the proxy's default
	Adopt     []Dialect         `json:"adopt,omitempty"`
	// Exclude are namespaces where nothing is injected, besides Namespace and Kubernetes' own.
	Exclude   []string                    `json:"excludeNamespaces,omitempty"`
	LogLevel  string                      `json:"logLevel,omitempty"`
	AccessLog string                      `json:"accessLog,omitempty"`
	Resources corev1.ResourceRequirements `json:"resources,omitempty"`
	// DNS: queries of names are captured, so that hosts of ServiceEntries resolve. nil is true.
	DNS *bool `json:"dns,omitempty"`
	// Native: sidecars are init containers that stay (Kubernetes 1.29). nil is true.
	Native *bool `json:"nativeSidecars,omitempty"`
	// Always injects where nobody says anything: the user of the command line asks.
	Always bool `json:"-"`
}

// Defaults returns the settings for an image.
func Defaults(image string) *Config {
	return (&Config{Image: image}).Complete()
}

// ReadConfig reads injection.yaml.
func ReadConfig(data []byte) (*Config, error) {
	c := new(Config)
	if err := yaml.UnmarshalStrict(data, c); err != nil {
		return nil, fmt.Errorf("settings of injection: %w", err)
	}
	return c.Complete(), c.Check()
}

// Complete sets what is not set, and returns c.
func (c *Config) Complete() *Config {
	set := func(v *string, def string) {
		if *v == "" {
			*v = def
		}
	}
	set(&c.Namespace, "malha-system")
	set(&c.Control, "malhad."+c.Namespace+".svc:15012")
	set(&c.LogLevel, "info")
	set(&c.AccessLog, "off")
	if c.Pull == "" {
		c.Pull = corev1.PullIfNotPresent
	}
	if c.Version == "" {
		if i := strings.LastIndexByte(c.Image, ':'); i > strings.LastIndexByte(c.Image, '/') {
			c.Version = c.Image[i+1:]
		}
	}
	return c
}

// Check finds what can't be meant.
func (c *Config) Check() error {
	if c.Image == "" {
		return errors.New("settings of injection: there is no image of the proxy")
	}
	for _, d := range c.Adopt {
		if d != Istio && d != Linkerd {
			return fmt.Errorf("settings of injection: adopt: %q is neither istio nor linkerd", d)
		}
	}
	if !slices.Contains(levels, c.LogLevel) {
		return fmt.Errorf("settings of injection: logLevel: %q is none of %s", c.LogLevel, strings.Join(levels, ", "))
	}
	if !slices.Contains([]corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}, c.Pull) {
		return fmt.Errorf("settings of injection: pullPolicy: %q is none of Always, IfNotPresent, Never", c.Pull)
	}
	return nil
}

func (c *Config) adopts(d Dialect) bool { return d == Malha || slices.Contains(c.Adopt, d) }

// levels are the proxy's log levels.
var levels = []string{"debug", "info", "warn", "error"}

// nativeDrain is the time to finish what is open: the application of a native sidecar has ended before it is told to.
const nativeDrain = 5 * time.Second

// Namespace is the namespace of a pod.
type Namespace struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
}
