package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// server is a Deployment of malha.test/workload, with its Service, and what is to be put into the container, such as probes.
func server(name, container string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: server
        image: malha.test/workload:1
        args: [serve]
        ports: [{containerPort: 8080}, {containerPort: 9090}, {containerPort: 7000}]
%[2]s
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 9090}, {name: tcp-greeting, port: 7000}]
---
`, name, container)
}

const ready = `        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}`

// probes: the kubelet's questions reach applications under strict mutual TLS, in every protocol, and their answers count.
func (b *bed) probes(t *testing.T) {
	const namespace = "mesh-probes"
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	var objects strings.Builder
	for name, question := range map[string]string{
		"http": "httpGet: {path: /healthz, port: 8080}", "tcp": "tcpSocket: {port: 7000}", "grpc": "grpc: {port: 9090}",
	} {
		container := ""
		for _, probe := range []string{"startup", "readiness", "liveness"} {
			container += "        " + probe + "Probe: {" + question + ", periodSeconds: 1, failureThreshold: 5}\n"
		}
		objects.WriteString(server(name, container))
	}
	b.apply(t, objects.String(), "-n", namespace)
	b.available(t, namespace)

	objects.Reset()
	for name, question := range map[string]string{
		"http": "httpGet: {path: /missing, port: 8080}", "tcp": "tcpSocket: {port: 7001}", "grpc": "grpc: {port: 8080}",
	} {
		objects.WriteString(server("not-"+name, "        readinessProbe: {"+question+", periodSeconds: 1}"))
	}
	b.apply(t, objects.String(), "-n", namespace)
	eventually(t, func() error { // running, and not ready
		pods := kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.labels.app} {.status.containerStatuses[0].started} {.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
		for _, want := range []string{"http true true 0", "tcp true true 0", "grpc true true 0", "not-http true false 0", "not-tcp true false 0", "not-grpc true false 0"} {
			if !strings.Contains("\n"+pods, "\n"+want+"\n") {
				return fmt.Errorf("pods are (name, started, ready, restarts):\n%sand want %s", pods, want)
			}
		}
		return nil
	})
	eventually(t, func() error {
		events := kubectl(t, b.c, "", "-n", namespace, "get", "events", "--field-selector=reason=Unhealthy", "-o", `jsonpath={range .items[*]}{.involvedObject.name} {.message}{"\n"}{end}`)
		for _, name := range []string{"not-http-", "not-tcp-", "not-grpc-"} {
			if !strings.Contains(events, name) {
				return fmt.Errorf("no event says that %s fails its probe:\n%s", name, events)
			}
		}
		return nil
	})
}

// jobs: the proxy of a Job leaves when the application has finished, and init containers use the network as containers do.
func (b *bed) jobs(t *testing.T) {
	const namespace = "mesh-jobs"
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	b.apply(t, server("web", ready), "-n", namespace)
	b.available(t, namespace)
	b.apply(t, `apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - {name: early, image: "malha.test/workload:1", args: [get, "http://web/early"]}
      containers:
      - {name: once, image: "malha.test/workload:1", args: [get, "http://web/late"]}
`, "-n", namespace)
	if _, err := b.c.Kubectl(t.Context(), "", "-n", namespace, "wait", "--for=condition=Complete", "job/once", "--timeout=300s"); err != nil {
		t.Fatal(err)
	}
	for container, path := range map[string]string{"early": "/early", "once": "/late"} {
		log := kubectl(t, b.c, "", "-n", namespace, "logs", "job/once", "-c", container)
		if !strings.Contains(log, `"status":200`) || !strings.Contains(log, path) {
			t.Errorf("the container %s got %q", container, log)
		}
	}
	pods := kubectl(t, b.c, "", "-n", namespace, "get", "pods", "-l", "job-name=once", "-o", `jsonpath={range .items[*]}{.status.phase} {range .status.initContainerStatuses[*]}{.name}={.state.terminated.reason} {end}{end}`)
	for _, want := range []string{"Succeeded ", "malha-proxy=Completed ", "early=Completed "} {
		if !strings.Contains(pods, want) {
			t.Errorf("the pod of the Job: %q, want %q", pods, want)
		}
	}
}

// opaque: a protocol that the mesh does not know, in which the server speaks first.
func (b *bed) opaque(t *testing.T) {
	const namespace = "mesh-opaque"
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	b.apply(t, server("greeter", ready), "-n", namespace)
	in, out := b.client(t, namespace), b.outside(t)
	b.available(t, namespace)
	for _, host := range []string{"greeter:7000", "greeter." + namespace + ".svc.cluster.local:7000"} {
		eventually(t, func() error {
			got, err := in.run(t.Context(), "say", host, "olá")
			if err == nil && (!strings.HasPrefix(got, "220 greeter-") || !strings.HasSuffix(got, "\nolá\n")) {
				err = fmt.Errorf("%s said %q", host, got)
			}
			return err
		})
	}
	if got, err := out.run(t.Context(), "say", "greeter."+namespace+":7000", "olá"); err == nil {
		t.Errorf("strict mutual TLS lets a plain connection in: %q", got)
	}
}

// names: a host of a ServiceEntry, which no name server knows, has an address for applications of the mesh, and leads to a
// server that is not in it.
func (b *bed) names(t *testing.T) {
	const namespace, host = "mesh-names", "files.example.com"
	b.namespace(t, "plain-names", "", "")
	b.apply(t, server("files", ready), "-n", "plain-names")
	b.namespace(t, namespace, "malha.dev/inject: enabled", "")
	in, out := b.client(t, namespace), b.outside(t)
	b.available(t, "plain-names")
	address := kubectl(t, b.c, "", "-n", "plain-names", "get", "pods", "-o", "jsonpath={.items[0].status.podIP}")
	if _, err := in.get(t.Context(), "http://"+host+"/", 1); err == nil {
		t.Fatalf("%s is known before there is a ServiceEntry", host)
	}
	b.apply(t, fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: files}
spec:
  hosts: [%s]
  exportTo: ["."]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 7000, name: tcp, protocol: TCP}]
  endpoints: [{address: %s}]
`, host, address), "-n", namespace)
	eventually(t, func() error {
		got, err := in.get(t.Context(), "http://"+host+"/a", 1)
		if err == nil && (!strings.HasPrefix(got[0], "files-") || !strings.HasSuffix(got[0], " "+host+" /a\n")) {
			err = fmt.Errorf("%s answered %q", host, got)
		}
		return err
	})
	eventually(t, func() error { // TCP has nothing but the address to be told by
		got, err := in.run(t.Context(), "say", host+":7000", "olá")
		if err == nil && !strings.HasSuffix(got, "\nolá\n") {
			err = fmt.Errorf("%s said %q", host, got)
		}
		return err
	})
	// Names of others are answered as ever: the server's own, of a namespace outside of the mesh.
	if _, err := in.get(t.Context(), "http://files.plain-names/", 1); err != nil {
		t.Error(err)
	}
	if _, err := out.get(t.Context(), "http://"+host+"/", 1); err == nil {
		t.Error("a client outside of the mesh knows the host")
	}
}
