package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/malha-mesh/malha/internal/probe"
)

const (
	identityDir = "/var/run/secrets/malha.dev"
	stateDir    = "/var/run/malha"
	rootsFile   = identityDir + "/root-cert.pem"
	tokenFile   = identityDir + "/token"

	// Audience is whom the tokens of proxies are for: the mesh's authority.
	Audience = "malha-ca"
	// RootsConfigMap has the mesh's roots, under RootsKey, in each namespace of the mesh.
	RootsConfigMap = "malha-ca-root"
	// RootsKey is the key of the bundle in it, in PEM.
	RootsKey = "root-cert.pem"

	tokenLife = 3600 // seconds; the kubelet replaces it after 80 % of them
)

// status is the value of StatusAnnotation: what was added, and what was there before.
type status struct {
	Version     string   `json:"version,omitempty"`
	Init        []string `json:"initContainers,omitempty"`
	Containers  []string `json:"containers,omitempty"`
	Volumes     []string `json:"volumes,omitempty"`
	Annotations []string `json:"annotations,omitempty"`
	Made        []string `json:"made,omitempty"` // the fields that were not there at all
	Probes      []was    `json:"probes,omitempty"`
}

// was is a probe or hook that was rewritten.
type was struct {
	Container string          `json:"container"`
	Field     string          `json:"field"` // "livenessProbe", "lifecycle/preStop"
	Kind      string          `json:"kind"`  // "httpGet", "tcpSocket", "grpc"
	Value     json.RawMessage `json:"value"`
}

// patch makes the pod a pod of the mesh.
func (c *Config) patch(meta *metav1.ObjectMeta, spec *corev1.PodSpec, s *settings, r *Result, bare bool) (Patch, error) {
	var p Patch
	st := status{Version: c.Version, Volumes: []string{identityVolume, stateVolume}}
	if bare {
		st.Made = append(st.Made, "metadata")
		p.add(map[string]any{}, "metadata")
	}
	// Probes first: the paths are still those of the object that was given.
	set, err := s.rewriteProbes(spec, &p, &st, r)
	if err != nil {
		return nil, err
	}
	proxy, err := c.proxy(spec, s, set)
	if err != nil {
		return nil, err
	}
	first := c.capturer(s)
	if spec.InitContainers == nil {
		st.Made = append(st.Made, "initContainers")
		p.add([]any{}, "spec", "initContainers")
	}
	if s.native {
		always := corev1.ContainerRestartPolicyAlways
		proxy.RestartPolicy = &always
		st.Init = []string{InitContainer, ProxyContainer}
		p.add(tree(first), "spec", "initContainers", 0)
		p.add(tree(proxy), "spec", "initContainers", 1)
	} else {
		// Capture is last: until the proxy runs, the application's own init containers have the network as it was.
		st.Init, st.Containers = []string{InitContainer}, []string{ProxyContainer}
		p.add(tree(first), "spec", "initContainers", "-")
		p.add(tree(proxy), "spec", "containers", 0)
	}
	if spec.Volumes == nil {
		st.Made = append(st.Made, "volumes")
		p.add([]any{}, "spec", "volumes")
	}
	for _, v := range volumes() {
		p.add(tree(v), "spec", "volumes", "-")
	}
	c.annotate(meta, spec, s, &p, &st)
	b, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("status of injection: %w", err)
	}
	p.add(string(b), "metadata", "annotations", StatusAnnotation)
	return p, nil
}

// annotate adds what tools read, where the user said nothing.
func (c *Config) annotate(meta *metav1.ObjectMeta, spec *corev1.PodSpec, s *settings, p *Patch, st *status) {
	add := map[string]string{}
	if _, ok := meta.Annotations["prometheus.io/scrape"]; !ok && meta.Annotations["prometheus.io/port"] == "" && meta.Annotations["prometheus.io/path"] == "" {
		add["prometheus.io/scrape"], add["prometheus.io/port"], add["prometheus.io/path"] = "true", strconv.Itoa(MetricsPort), "/stats/prometheus"
	}
	if !s.native { // the proxy is the first container, which kubectl would take
		for _, key := range []string{"kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"} {
			if _, ok := meta.Annotations[key]; !ok {
				add[key] = spec.Containers[0].Name
			}
		}
	}
	if meta.Annotations == nil {
		st.Made = append(st.Made, "annotations")
		p.add(map[string]any{}, "metadata", "annotations")
	}
	for _, key := range sortedKeys(add) {
		p.add(add[key], "metadata", "annotations", key)
		st.Annotations = append(st.Annotations, key)
	}
}

// capturer is the init container that sets the rules of capture.
func (c *Config) capturer(s *settings) *corev1.Container {
	k := &corev1.Container{
		Name: InitContainer, Image: s.image, ImagePullPolicy: c.Pull, Args: s.capture.Args(), Resources: *s.resources.DeepCopy(),
		SecurityContext: confined(0, 0),
	}
	k.SecurityContext.RunAsNonRoot = new(bool)
	k.SecurityContext.Capabilities.Add = []corev1.Capability{"NET_ADMIN", "NET_RAW"}
	return k
}

// confined is a container that may do nothing but what is added.
func confined(user, group int64) *corev1.SecurityContext {
	yes, no := true, false
	return &corev1.SecurityContext{
		RunAsUser: &user, RunAsGroup: &group, RunAsNonRoot: &yes, ReadOnlyRootFilesystem: &yes, AllowPrivilegeEscalation: &no, Privileged: &no,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// proxy is the container of the proxy.
func (c *Config) proxy(spec *corev1.PodSpec, s *settings, set probe.Set) (*corev1.Container, error) {
	drain := nativeDrain
	switch {
	case s.drain != nil:
		drain = *s.drain
	case !s.native: // it is told to end when the application is
		drain = 30 * time.Second
		if g := spec.TerminationGracePeriodSeconds; g != nil {
			drain = min(drain, max(time.Duration(*g)*time.Second-time.Second, time.Second))
		}
	}
	args := []string{
		"--control=" + c.Control, "--roots=" + rootsFile, "--token=" + tokenFile, "--node=$(POD_NAMESPACE)/$(POD_NAME)", "--role=sidecar", "--state=" + stateDir,
		"--admin=127.0.0.1:" + strconv.Itoa(AdminPort), "--metrics=:" + strconv.Itoa(MetricsPort), "--health=:" + strconv.Itoa(HealthPort),
		"--log-level=" + s.logLevel, "--access-log=" + s.accessLog, "--drain-timeout=" + drain.String(),
	}
	if c.Trust != "" {
		args = append(args, "--trust-domain="+c.Trust)
	}
	if s.concurrency > 0 {
		args = append(args, "--concurrency="+strconv.Itoa(s.concurrency))
	}
	k := &corev1.Container{
		Name: ProxyContainer, Image: s.image, ImagePullPolicy: c.Pull, Args: args, Resources: *s.resources.DeepCopy(), SecurityContext: confined(User, User),
		Ports: []corev1.ContainerPort{{Name: "malha-metrics", ContainerPort: MetricsPort, Protocol: corev1.ProtocolTCP}},
		VolumeMounts: []corev1.VolumeMount{
			{Name: identityVolume, MountPath: identityDir, ReadOnly: true}, {Name: stateVolume, MountPath: stateDir},
		},
		ReadinessProbe: &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: portNumber(HealthPort)}},
			PeriodSeconds: 10, FailureThreshold: 3, TimeoutSeconds: 3,
		},
	}
	for _, e := range [][2]string{
		{"POD_NAME", "metadata.name"}, {"POD_NAMESPACE", "metadata.namespace"}, {"POD_UID", "metadata.uid"}, {"POD_IP", "status.podIP"},
		{"NODE_NAME", "spec.nodeName"}, {"SERVICE_ACCOUNT", "spec.serviceAccountName"},
	} {
		k.Env = append(k.Env, corev1.EnvVar{Name: e[0], ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: e[1]}}})
	}
	if len(set) > 0 {
		v, err := set.Encode()
		if err != nil {
			return nil, err
		}
		k.Env = append(k.Env, corev1.EnvVar{Name: probe.Env, Value: escaped(v)})
	}
	if s.native || s.hold {
		k.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/malha-proxy", "wait", "--port=" + strconv.Itoa(HealthPort)}}}}
	}
	return k, nil
}

func volumes() []corev1.Volume {
	life, size := int64(tokenLife), resource.MustParse("64Mi")
	return []corev1.Volume{
		{Name: identityVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: Audience, ExpirationSeconds: &life, Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: RootsConfigMap}, Items: []corev1.KeyToPath{{Key: RootsKey, Path: "root-cert.pem"}}}},
		}}}},
		{Name: stateVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}},
	}
}

// tree returns v as plain JSON values, without the empty objects that Go types write ("resources": {}).
func tree(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // types of the Kubernetes API marshal
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	maps.DeleteFunc(out, func(_ string, v any) bool {
		m, ok := v.(map[string]any)
		return ok && len(m) == 0
	})
	return out
}
