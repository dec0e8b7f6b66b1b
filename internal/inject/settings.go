package inject

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/malha-mesh/malha/internal/capture"
	"github.com/malha-mesh/malha/internal/config/manifest"
)

// settings are what a pod's annotations may change.
type settings struct {
	capture     *capture.Options
	image       string
	logLevel    string
	accessLog   string
	concurrency int
	drain       *time.Duration // nil: the usual
	resources   corev1.ResourceRequirements
	asked       corev1.ResourceRequirements // the part of resources that annotations say
	native      bool
	hold        bool // without native sidecars: the application waits for the proxy
	rewrite     bool // probes
	notes       []string
}

func (c *Config) settings() *settings {
	s := &settings{
		capture: capture.Defaults(), image: c.Image, logLevel: c.LogLevel, accessLog: c.AccessLog, resources: *c.Resources.DeepCopy(),
		native: c.Native == nil || *c.Native, hold: true, rewrite: true,
	}
	s.dns(c.DNS == nil || *c.DNS)
	return s
}

func (s *settings) dns(on bool) {
	s.capture.DNS = 0
	if on {
		s.capture.DNS = DNSPort
	}
}

// Annotation is a word on a pod (or, where Inherited, on its namespace) that changes how it is injected.
type Annotation struct {
	Key     string
	Dialect Dialect
	Value   string // what it takes
	Meaning string
	// Ignored: it is accepted, has no effect, and says so.
	Ignored   bool
	Inherited bool
	apply     func(s *settings, value string) error
}

// Annotations returns every annotation that is known, by dialect and key. Label is a word of its own.
func Annotations() []Annotation {
	all := ours()
	all = append(all, istios()...)
	return append(all, linkerds()...)
}

// prefixes are the names of whose keys each must be known. Other dialects' unknown keys are warned of, ours refused.
var prefixes = map[Dialect][]string{
	Istio:   {"traffic.sidecar.istio.io/", "sidecar.istio.io/", "proxy.istio.io/", "inject.istio.io/", "readiness.status.sidecar.istio.io/", "status.sidecar.istio.io/", "prometheus.istio.io/"},
	Linkerd: {"config.linkerd.io/", "config.alpha.linkerd.io/", "config.beta.linkerd.io/", "linkerd.io/"},
}

// elsewhere are annotations that other rooms read or write, on pods too.
var elsewhere = []string{
	LabelInject, StatusAnnotation, "malha.dev/analyze-suppress", "malha.dev/balancer", "malha.dev/health-check",
	"sidecar.istio.io/inject", "sidecar.istio.io/status", "linkerd.io/inject", "linkerd.io/created-by", "linkerd.io/proxy-version", "linkerd.io/trust-root-sha256",
}

func ours() []Annotation {
	list := []Annotation{
		{Key: "native-sidecar", Value: "true, false", Meaning: "the proxy is an init container that stays; false for clusters before Kubernetes 1.29", apply: toggle(func(s *settings) *bool { return &s.native })},
		{Key: "hold-application", Value: "true, false", Meaning: "without native sidecars: the application starts when the proxy is ready", apply: toggle(func(s *settings) *bool { return &s.hold })},
		{Key: "rewrite-probes", Value: "true, false", Meaning: "probes and HTTP lifecycle hooks are asked by the proxy; false leaves them to the kubelet, which strict mutual TLS refuses", apply: toggle(func(s *settings) *bool { return &s.rewrite })},
		{Key: "dns", Value: "true, false", Meaning: "the proxy answers queries of names, so that hosts of ServiceEntries resolve", apply: func(s *settings, v string) error {
			on, err := boolean(v)
			s.dns(on)
			return err
		}},
		{Key: "proxy-image", Value: "an image", Meaning: "the proxy's image", apply: func(s *settings, v string) error {
			if v == "" || strings.ContainsAny(v, " \t\n\"'") {
				return fmt.Errorf("%q is not the name of an image", v)
			}
			s.image = v
			return nil
		}},
		{Key: "proxy-log-level", Value: "debug, info, warn, error", Meaning: "what the proxy logs", apply: logLevel},
		{Key: "access-log", Value: "off, stdout", Meaning: "one JSON line for each request and connection", apply: func(s *settings, v string) error {
			s.accessLog = v
			return oneOf(v, "off", "stdout")
		}},
		{Key: "proxy-concurrency", Value: "a number", Meaning: "threads of the proxy; 0 is its default", apply: concurrency},
		{Key: "drain-timeout", Value: "a duration", Meaning: "the longest time to finish open requests at the end", apply: drain},
	}
	list = append(list, resources("proxy-cpu-request", "proxy-cpu-limit", "proxy-memory-request", "proxy-memory-limit")...)
	for _, f := range capture.Flags() {
		list = append(list, Annotation{Key: f.Name, Value: choiceOf(f.Usage), Meaning: meaningOf(f.Usage), apply: captured(f.Option)})
	}
	for i := range list {
		list[i].Key, list[i].Dialect, list[i].Inherited = "malha.dev/"+list[i].Key, Malha, true
	}
	return list
}

func istios() []Annotation {
	list := []Annotation{
		{Key: "sidecar.istio.io/logLevel", Value: "a level of Envoy", Meaning: "what the proxy logs: trace is debug, critical and off are error", apply: func(s *settings, v string) error {
			level, ok := map[string]string{"trace": "debug", "debug": "debug", "info": "info", "warning": "warn", "warn": "warn", "error": "error", "critical": "error", "off": "error"}[v]
			if !ok {
				return fmt.Errorf("%q is none of trace, debug, info, warning, error, critical, off", v)
			}
			s.logLevel = level
			return nil
		}},
		{Key: "sidecar.istio.io/rewriteAppHTTPProbers", Value: "true, false", Meaning: "probes are asked by the proxy", apply: toggle(func(s *settings) *bool { return &s.rewrite })},
		{Key: "sidecar.istio.io/nativeSidecar", Value: "true, false", Meaning: "the proxy is an init container that stays", apply: toggle(func(s *settings) *bool { return &s.native })},
		{Key: "sidecar.istio.io/interceptionMode", Value: "REDIRECT", Meaning: "how traffic is captured; TPROXY and NONE are refused", apply: func(_ *settings, v string) error { return oneOf(v, "REDIRECT") }},
		{Key: "proxy.istio.io/config", Value: "a ProxyConfig", Meaning: "holdApplicationUntilProxyStarts, concurrency, terminationDrainDuration, and ISTIO_META_DNS_CAPTURE of proxyMetadata; other fields have no effect", apply: proxyConfig},
		{Key: "inject.istio.io/templates", Value: "sidecar", Meaning: "what is injected; gateways have a chart", apply: func(_ *settings, v string) error { return oneOf(v, "sidecar") }},
	}
	list = append(list, resources("sidecar.istio.io/proxyCPU", "sidecar.istio.io/proxyCPULimit", "sidecar.istio.io/proxyMemory", "sidecar.istio.io/proxyMemoryLimit")...)
	for _, f := range capture.Flags() {
		list = append(list, Annotation{Key: "traffic.sidecar.istio.io/" + f.Option, Value: choiceOf(f.Usage), Meaning: meaningOf(f.Usage), apply: captured(f.Option)})
	}
	for _, key := range []string{
		"traffic.sidecar.istio.io/kubevirtInterfaces", "sidecar.istio.io/agentLogLevel", "sidecar.istio.io/componentLogLevel", "sidecar.istio.io/proxyImage", "sidecar.istio.io/proxyImageType",
		"sidecar.istio.io/userVolume", "sidecar.istio.io/userVolumeMount", "sidecar.istio.io/bootstrapOverride", "sidecar.istio.io/statsInclusionPrefixes",
		"sidecar.istio.io/statsInclusionSuffixes", "sidecar.istio.io/statsInclusionRegexps", "sidecar.istio.io/extraStatTags", "sidecar.istio.io/statsHistogramBuckets",
		"sidecar.istio.io/statsEvictionInterval", "sidecar.istio.io/controlPlaneAuthPolicy", "sidecar.istio.io/discoveryAddress", "sidecar.istio.io/enableCoreDump",
		"proxy.istio.io/overrides", "prometheus.istio.io/merge-metrics", "status.sidecar.istio.io/port", "readiness.status.sidecar.istio.io/initialDelaySeconds",
		"readiness.status.sidecar.istio.io/periodSeconds", "readiness.status.sidecar.istio.io/failureThreshold", "readiness.status.sidecar.istio.io/applicationPorts",
	} {
		list = append(list, Annotation{Key: key, Ignored: true, Meaning: "is about Envoy or Istio's agent"})
	}
	for i := range list {
		list[i].Dialect = Istio
	}
	return list
}

func linkerds() []Annotation {
	list := []Annotation{
		{Key: "skip-inbound-ports", Value: "ports", Meaning: "ports of the workload whose connections are left alone", apply: captured("excludeInboundPorts")},
		{Key: "skip-outbound-ports", Value: "ports", Meaning: "ports to which connections are left alone", apply: captured("excludeOutboundPorts")},
		{Key: "opaque-ports", Value: "ports, or names of them", Meaning: "ports whose protocol is not looked at: read on Services and namespaces, on pods it has no effect", apply: opaque},
		{Key: "default-inbound-policy", Value: "all-unauthenticated", Meaning: "who may call; other values are refused: PeerAuthentication and AuthorizationPolicy say it", apply: func(_ *settings, v string) error {
			return oneOf(v, "all-unauthenticated")
		}},
		{Key: "proxy-require-identity-inbound-ports", Value: "nothing", Meaning: "is refused: a PeerAuthentication with portLevelMtls says it", apply: func(_ *settings, v string) error { return oneOf(v, "") }},
		{Key: "proxy-log-level", Value: "as in Linkerd", Meaning: "what the proxy logs: the level of linkerd, or the first one", apply: linkerdLevel},
		{Key: "access-log", Value: "apache, json", Meaning: "one JSON line for each request and connection, on standard output", apply: func(s *settings, v string) error {
			s.accessLog = "stdout"
			return oneOf(v, "apache", "json")
		}},
		{Key: "proxy-await", Value: "enabled, disabled", Meaning: "without native sidecars: the application starts when the proxy is ready", apply: func(s *settings, v string) error {
			s.hold = v == "enabled"
			return oneOf(v, "enabled", "disabled")
		}},
		{Key: "shutdown-grace-period", Value: "a duration", Meaning: "the longest time to finish open requests at the end", apply: drain},
		{Key: "proxy-enable-native-sidecar", Value: "true, false", Meaning: "the proxy is an init container that stays", apply: toggle(func(s *settings) *bool { return &s.native })},
	}
	list = append(list, resources("proxy-cpu-request", "proxy-cpu-limit", "proxy-memory-request", "proxy-memory-limit")...)
	for _, key := range []string{
		"proxy-image", "proxy-version", "image-pull-policy", "debug-image", "debug-image-version", "debug-image-pull-policy", "enable-debug-sidecar", "inbound-port", "outbound-port", "admin-port", "control-port",
		"pod-inbound-ports", "skip-subnets", "proxy-cpu-ratio-limit", "proxy-ephemeral-storage-request", "proxy-ephemeral-storage-limit", "proxy-uid", "proxy-gid", "proxy-admin-shutdown", "proxy-log-format",
		"proxy-log-http-headers", "proxy-additional-env", "proxy-metrics-hostname-labels", "close-wait-timeout", "enable-external-profiles",
		"enable-gateway", "proxy-outbound-connect-timeout", "proxy-inbound-connect-timeout", "proxy-outbound-discovery-cache-unused-timeout", "proxy-inbound-discovery-cache-unused-timeout",
		"proxy-disable-outbound-protocol-detect-timeout", "proxy-disable-inbound-protocol-detect-timeout",
	} {
		list = append(list, Annotation{Key: key, Ignored: true, Meaning: "is about Linkerd's proxy"})
	}
	for i := range list {
		list[i].Key, list[i].Dialect, list[i].Inherited = "config.linkerd.io/"+list[i].Key, Linkerd, true
	}
	native := list[slices.IndexFunc(list, func(a Annotation) bool { return strings.HasSuffix(a.Key, "native-sidecar") })]
	for _, prefix := range []string{"config.alpha.linkerd.io/", "config.beta.linkerd.io/"} {
		native.Key = prefix + "proxy-enable-native-sidecar"
		list = append(list, native)
	}
	return append(list, Annotation{Key: "config.alpha.linkerd.io/proxy-wait-before-exit-seconds", Dialect: Linkerd, Ignored: true, Inherited: true, Meaning: "is about Linkerd's proxy"})
}

// read applies a pod's annotations, those of Linkerd and Istio first, so that ours win; within a dialect the namespace's first.
func (c *Config) read(s *settings, ns Namespace, annotations map[string]string, r *Result, out *Refusal) {
	all := Annotations()
	for _, d := range []Dialect{Linkerd, Istio, Malha} {
		if !c.adopts(d) {
			continue
		}
		for _, a := range all {
			if a.Dialect != d {
				continue
			}
			value, on := annotations[a.Key]
			path := fmt.Sprintf("metadata.annotations[%s]", a.Key)
			if !on && a.Inherited {
				if value, on = ns.Annotations[a.Key]; on {
					path = fmt.Sprintf("namespace %s metadata.annotations[%s]", ns.Name, a.Key)
				}
			}
			switch {
			case !on:
			case a.Ignored:
				r.note("%s has no effect: it %s", path, a.Meaning)
			default:
				if err := a.apply(s, strings.TrimSpace(value)); err != nil {
					out.add(path, "want "+a.Value, "%v", err)
				}
			}
		}
		c.unknown(d, annotations, all, r, out)
	}
}

// unknown finds keys that look like words of a dialect and are none.
func (c *Config) unknown(d Dialect, annotations map[string]string, all []Annotation, r *Result, out *Refusal) {
	known := slices.Clone(elsewhere)
	for _, a := range all {
		known = append(known, a.Key)
	}
	for _, key := range sortedKeys(annotations) {
		if slices.Contains(known, key) {
			continue
		}
		switch {
		case d == Malha && strings.HasPrefix(key, "malha.dev/"):
			out.add(fmt.Sprintf("metadata.annotations[%s]", key), manifest.DidYouMean(key, known), "no such annotation")
		case d != Malha && slices.ContainsFunc(prefixes[d], func(p string) bool { return strings.HasPrefix(key, p) }):
			r.note("metadata.annotations[%s] has no effect: Malha does not know it", key)
		}
	}
}

func boolean(v string) (bool, error) {
	switch v {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", v)
}

func toggle(field func(*settings) *bool) func(*settings, string) error {
	return func(s *settings, v string) error {
		on, err := boolean(v)
		*field(s) = on
		return err
	}
}

func oneOf(v string, words ...string) error {
	if slices.Contains(words, v) {
		return nil
	}
	return fmt.Errorf("%q is not supported", v)
}

func logLevel(s *settings, v string) error {
	s.logLevel = v
	if !slices.Contains(levels, v) {
		return fmt.Errorf("%q is none of %s", v, strings.Join(levels, ", "))
	}
	return nil
}

// linkerdLevel reads "warn,linkerd=info,hickory=error".
func linkerdLevel(s *settings, v string) error {
	level := ""
	for part := range strings.SplitSeq(v, ",") {
		target, l, named := strings.Cut(strings.TrimSpace(part), "=")
		if !named {
			target, l = "", target
		}
		if level == "" && !named || target == "linkerd" {
			level = l
		}
	}
	switch level {
	case "trace":
		level = "debug"
	case "off":
		level = "error"
	}
	return logLevel(s, level)
}

func concurrency(s *settings, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > 1024 {
		return fmt.Errorf("%q is not a number from 0 to 1024", v)
	}
	s.concurrency = n
	return nil
}

func drain(s *settings, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > 24*time.Hour {
		return fmt.Errorf("%q is not a duration such as 5s", v)
	}
	s.drain = &d
	return nil
}

func captured(option string) func(*settings, string) error {
	return func(s *settings, v string) error { return s.capture.Set(option, v) }
}

// opaque checks the list only: dialects read it where it counts.
func opaque(s *settings, v string) error {
	s.notes = append(s.notes, "config.linkerd.io/opaque-ports is read on Services and namespaces, not on pods")
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part == "" || strings.ContainsAny(part, " \t\n/") {
			return fmt.Errorf("%q is not a list of ports", v)
		}
	}
	return nil
}

func resources(cpuRequest, cpuLimit, memoryRequest, memoryLimit string) []Annotation {
	of := func(key string, name corev1.ResourceName, limit bool, meaning string) Annotation {
		return Annotation{Key: key, Value: "a quantity", Meaning: meaning, apply: func(s *settings, v string) error {
			q, err := resource.ParseQuantity(v)
			if err != nil || q.Sign() < 0 {
				return fmt.Errorf("%q is not a quantity such as 100m or 64Mi", v)
			}
			list := &s.asked.Requests
			if limit {
				list = &s.asked.Limits
			}
			if *list == nil {
				*list = corev1.ResourceList{}
			}
			(*list)[name] = q
			return nil
		}}
	}
	return []Annotation{
		of(cpuRequest, corev1.ResourceCPU, false, "CPU that the proxy asks for"), of(cpuLimit, corev1.ResourceCPU, true, "CPU that the proxy gets at most"),
		of(memoryRequest, corev1.ResourceMemory, false, "memory that the proxy asks for"), of(memoryLimit, corev1.ResourceMemory, true, "memory that the proxy gets at most"),
	}
}

// fit puts what annotations say into the resources. The API server refuses a request above the limit: what nobody asked for gives way.
func (s *settings) fit(out *Refusal) {
	merge := func(list *corev1.ResourceList, asked corev1.ResourceList) {
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		maps.Copy(*list, asked)
	}
	merge(&s.resources.Requests, s.asked.Requests)
	merge(&s.resources.Limits, s.asked.Limits)
	for _, name := range slices.Sorted(maps.Keys(s.resources.Requests)) {
		want := s.resources.Requests[name]
		limit, limited := s.resources.Limits[name]
		if !limited || limit.Cmp(want) >= 0 {
			continue
		}
		_, wanted := s.asked.Requests[name]
		switch _, bounded := s.asked.Limits[name]; {
		case wanted && bounded:
			out.add("metadata.annotations", "ask for no more than the limit", "the proxy asks for %s of %s and gets %s at most", want.String(), name, limit.String())
		case bounded:
			s.resources.Requests[name] = limit
		default:
			s.resources.Limits[name] = want
		}
	}
}

// proxyConfig reads the fields of Istio's ProxyConfig that have a counterpart.
func proxyConfig(s *settings, v string) error {
	var p map[string]any
	if err := yaml.Unmarshal([]byte(v), &p); err != nil {
		return fmt.Errorf("it is not YAML: %w", err)
	}
	for _, key := range sortedKeys(p) {
		var err error
		switch value := p[key]; key {
		case "holdApplicationUntilProxyStarts":
			s.hold, err = boolean(fmt.Sprint(value))
		case "concurrency":
			err = concurrency(s, fmt.Sprint(value))
		case "terminationDrainDuration":
			err = drain(s, fmt.Sprint(value))
		case "proxyMetadata":
			m, _ := value.(map[string]any)
			for _, name := range sortedKeys(m) {
				if name != "ISTIO_META_DNS_CAPTURE" {
					s.notes = append(s.notes, fmt.Sprintf("proxyMetadata %s of proxy.istio.io/config has no effect", name))
				}
			}
			if on, ok := m["ISTIO_META_DNS_CAPTURE"]; ok {
				var dns bool
				dns, err = boolean(fmt.Sprint(on))
				s.dns(dns)
			}
		default:
			if !slices.Contains(proxyConfigFields, key) {
				err = fmt.Errorf("no such field; %s", manifest.DidYouMean(key, slices.Concat(proxyConfigFields, proxyConfigWorks)))
			}
			s.notes = append(s.notes, fmt.Sprintf("%s of proxy.istio.io/config has no effect", key))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// proxyConfigWorks are the fields that proxyConfig reads.
var proxyConfigWorks = []string{"holdApplicationUntilProxyStarts", "concurrency", "terminationDrainDuration", "proxyMetadata"}

// proxyConfigFields are the other fields of istio.io/api/mesh/v1alpha1.ProxyConfig.
var proxyConfigFields = []string{
	"configPath", "binaryPath", "serviceCluster", "tracingServiceName", "drainDuration", "discoveryAddress", "zipkinAddress", "statsdUdpAddress", "proxyAdminPort",
	"controlPlaneAuthPolicy", "customConfigFile", "statNameLength", "proxyBootstrapTemplatePath", "interceptionMode", "tracing", "envoyAccessLogService", "envoyMetricsService",
	"statusPort", "extraStatTags", "proxyStatsMatcher", "meshId", "readinessProbe", "caCertificatesPem", "image", "privateKeyProvider", "proxyHeaders", "runtimeValues",
	"gatewayTopology", "fileFlushInterval", "fileFlushMinSizeKb", "sds", "availabilityZone", "statsCompression",
}

// choiceOf and meaningOf take the usage of a flag apart.
func choiceOf(usage string) string {
	_, list, _ := strings.Cut(usage, ": ")
	return strings.ReplaceAll(strings.ToLower(list), "`", "")
}

func meaningOf(usage string) string {
	meaning, _, _ := strings.Cut(usage, ": ")
	return meaning
}
