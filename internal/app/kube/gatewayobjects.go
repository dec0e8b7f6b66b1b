package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/gateway"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/model"
)

// Ports and paths of a proxy, as the injector and the chart have them.
const (
	healthPort  = 15021
	metricsPort = 15020
	identityDir = "/var/run/secrets/malha.dev"
	stateDir    = "/var/run/malha"
	proxyUser   = 1337
)

// gatewayObject returns the name of what is made for a Gateway: NAME-CLASS (GEP-1762), shortened where a Service's name would be too long.
func gatewayObject(name, class string) string {
	full := name + "-" + class
	if len(full) <= maxLabel {
		return full
	}
	sum := sha256.Sum256([]byte(full))
	return full[:maxLabel-9] + "-" + hex.EncodeToString(sum[:4])
}

// specOf returns the class that a Gateway names.
func specOf(o *config.Object) string {
	if o.Node != nil {
		for i := 0; i+1 < len(o.Node.Content); i += 2 {
			if o.Node.Content[i].Value != "spec" {
				continue
			}
			spec := o.Node.Content[i+1]
			for j := 0; j+1 < len(spec.Content); j += 2 {
				if spec.Content[j].Value == "gatewayClassName" {
					return spec.Content[j+1].Value
				}
			}
		}
	}
	return gateway.ClassName
}

// renderGateway returns what a Gateway runs in.
func renderGateway(o *Options, w *model.Gateway, name, class string, annotations map[string]string, owner *metav1.OwnerReference) (*corev1.ServiceAccount, *appsv1.Deployment, *corev1.Service) {
	ours := partOf()
	ours[labelGatewayName], ours[labelClassName] = w.Name.Name, class
	all := maps.Clone(w.ProxyLabels) // what users ask for does not change what we find things by
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, ours)
	object := metav1.ObjectMeta{
		Name: name, Namespace: w.Name.Namespace, Labels: all, Annotations: w.ProxyAnnotations, OwnerReferences: []metav1.OwnerReference{*owner},
	}
	account := &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: object}

	ports := portsOf(w)
	pod := maps.Clone(all)
	pod["malha.dev/role"], pod["malha.dev/inject"], pod["sidecar.istio.io/inject"] = "gateway", "disabled", "false"
	notes := maps.Clone(w.ProxyAnnotations)
	if notes == nil {
		notes = map[string]string{}
	}
	for k, v := range map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "15020", "prometheus.io/path": "/stats/prometheus", "linkerd.io/inject": "disabled"} {
		if notes[k] == "" {
			notes[k] = v
		}
	}
	finds := map[string]string{labelGatewayName: w.Name.Name}
	one := intstr.FromInt32(1)
	none := intstr.FromInt32(0)
	deployment := &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: object,
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: finds},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &one},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: pod, Annotations: notes},
				Spec:       gatewayPod(o, name, ports),
			},
		},
	}
	service := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: object,
		Spec: corev1.ServiceSpec{Type: serviceType(annotations), Selector: finds},
	}
	for _, p := range ports {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{
			Name: p.name, Port: int32(p.number), TargetPort: intstr.FromInt32(int32(p.target)), Protocol: corev1.ProtocolTCP,
		})
	}
	if len(w.Addresses) > 0 && service.Spec.Type == corev1.ServiceTypeLoadBalancer {
		service.Spec.LoadBalancerIP = w.Addresses[0] // what implementations of load balancers look at, deprecated or not
	}
	return account, deployment, service
}

func serviceType(annotations map[string]string) corev1.ServiceType {
	for _, key := range []string{serviceTypeAnnotation, serviceTypeAnnotationIstio} {
		switch t := corev1.ServiceType(annotations[key]); t {
		case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
			return t
		}
	}
	return corev1.ServiceTypeLoadBalancer
}

func gatewayPod(o *Options, account string, ports []gatewayPort) corev1.PodSpec {
	yes, no := true, false
	user, grace, hour := int64(proxyUser), int64(45), int64(3600)
	limit := resource.MustParse("64Mi")
	from := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(healthPort)}}
	c := corev1.Container{
		Name: "malha-proxy", Image: o.ProxyImage, ImagePullPolicy: corev1.PullPolicy(o.PullPolicy),
		Args: []string{
			"--role=gateway", "--control=malhad." + o.Namespace + ".svc:15012", "--roots=" + identityDir + "/" + BundleKey, "--token=" + identityDir + "/token",
			"--node=$(POD_NAMESPACE)/$(POD_NAME)", "--state=" + stateDir, "--admin=127.0.0.1:15000", "--metrics=:15020", "--health=:15021",
		},
		Env: []corev1.EnvVar{
			from("POD_NAME", "metadata.name"), from("POD_NAMESPACE", "metadata.namespace"), from("POD_UID", "metadata.uid"),
			from("POD_IP", "status.podIP"), from("NODE_NAME", "spec.nodeName"), from("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		},
		StartupProbe:   &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, FailureThreshold: 600},
		ReadinessProbe: &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 2},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
		},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "malha-identity", MountPath: identityDir, ReadOnly: true}, {Name: "malha-state", MountPath: stateDir},
		},
	}
	if o.TrustDomain != "" && o.TrustDomain != ident.DefaultTrustDomain {
		c.Args = append(c.Args, "--trust-domain="+o.TrustDomain)
	}
	if o.ProxyLogLevel != "" {
		c.Args = append(c.Args, "--log-level="+o.ProxyLogLevel)
	}
	for _, p := range ports {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: p.name, ContainerPort: int32(p.target), Protocol: corev1.ProtocolTCP})
	}
	c.Ports = append(c.Ports,
		corev1.ContainerPort{Name: "metrics", ContainerPort: metricsPort, Protocol: corev1.ProtocolTCP},
		corev1.ContainerPort{Name: "health", ContainerPort: healthPort, Protocol: corev1.ProtocolTCP})
	return corev1.PodSpec{
		ServiceAccountName: account, AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, FSGroup: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{c},
		Volumes: []corev1.Volume{
			{Name: "malha-identity", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: ca.Audience, ExpirationSeconds: &hour, Path: "token"}},
				{ConfigMap: &corev1.ConfigMapProjection{
					LocalObjectReference: corev1.LocalObjectReference{Name: BundleName}, Items: []corev1.KeyToPath{{Key: BundleKey, Path: BundleKey}},
				}},
			}}}},
			{Name: "malha-state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &limit}}},
		},
	}
}
