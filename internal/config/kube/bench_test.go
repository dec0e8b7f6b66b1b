package kube_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/malha-mesh/malha/internal/config/kube"
)

// BenchmarkScale reads 1,000 Services of 5 pods each, and then changes the readiness of one pod, and one EndpointSlice. heap-MB
// is what the Source holds, its last Result included, without what the fake API server holds.
func BenchmarkScale(b *testing.B) {
	const services, each = 1000, 5
	client := fake.NewClientset()
	tracker := client.Tracker()
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	var one *corev1.Pod
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		s := service(name, map[string]string{"app": name}, port("http", 80, 8080))
		must(tracker.Add(s))
		var ends []string
		for j := range each {
			p := meshPod(fmt.Sprintf("%s-%d", name, j), fmt.Sprintf("10.%d.%d.%d", 1+j, i/250, i%250), true)
			p.Labels["app"] = name
			for k := range 6 { // what a real one has, and nobody needs
				p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", k), Value: "some value of a usual length"})
			}
			must(tracker.Add(p))
			ends = append(ends, p.Name+"="+p.Status.PodIP)
			one = p
		}
		must(tracker.Add(slice(name+"-x", name, ends...)))
	}
	must(tracker.Add(service("strangers", map[string]string{"app": "strangers"}, port("http", 80, 8080))))
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	source := kube.New(kube.Options{Client: client, Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(kruntime.NewScheme(), map[schema.GroupVersionResource]string{}), Quiet: time.Millisecond})
	ctx, cancel := context.WithCancel(b.Context())
	results := make(chan *kube.Result, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = source.Run(ctx, func(r *kube.Result) { results <- r })
	}()
	defer func() {
		cancel()
		<-done
	}()
	started := time.Now()
	whole := <-results
	first := time.Since(started)
	if len(whole.Instances) != services*each {
		b.Fatalf("%d instances", len(whole.Instances))
	}
	held := float64(heap()-before) / 1e6

	pods, slices := client.CoreV1().Pods("shop"), client.DiscoveryV1().EndpointSlices("shop")
	b.Run("pod", func(b *testing.B) {
		ready := true
		for b.Loop() {
			ready = !ready
			p := one.DeepCopy()
			setReady(p, ready)
			_, err := pods.Update(ctx, p, metav1.UpdateOptions{})
			must(err)
			if r := <-results; len(r.Delta.Instances) != 1 {
				b.Fatalf("%+v", r)
			}
		}
		b.ReportMetric(held, "heap-MB")
		b.ReportMetric(first.Seconds(), "s-first")
	})
	b.Run("slice", func(b *testing.B) {
		_, err := slices.Create(ctx, slice("strangers-x", "strangers", "z=10.99.0.1"), metav1.CreateOptions{})
		must(err)
		<-results
		var all []string
		for i := range 100 {
			all = append(all, fmt.Sprintf("z%d=10.99.1.%d", i, i))
		}
		n := 0
		for b.Loop() {
			n++
			s := slice("strangers-x", "strangers", all[:50+n%50]...)
			_, err := slices.Update(ctx, s, metav1.UpdateOptions{})
			must(err)
			if r := <-results; len(r.Delta.Groups) != 1 {
				b.Fatalf("%+v", r)
			}
		}
	})
	runtime.KeepAlive(whole)
}
