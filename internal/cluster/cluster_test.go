package cluster_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/malha-mesh/malha/internal/cluster"
	"github.com/malha-mesh/malha/internal/cluster/clustertest"
)

func TestExplain(t *testing.T) {
	c := &cluster.Cluster{Server: "https://x"}
	pods := cluster.Pods.GroupResource()
	for _, e := range []struct {
		err  error
		says string
	}{
		{apierrors.NewForbidden(pods, "a", errors.New("no")), "you lack a right"},
		{apierrors.NewUnauthorized("no"), "does not know you"},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, "does not answer"},
		{apierrors.NewConflict(pods, "a", errors.New(`conflict with "helm"`)), "--force-conflicts"},
		// As client-go returns them: a url.Error is a net.Error, whatever is in it.
		{get(&net.OpError{Op: "dial", Err: errors.New("refused")}), "does not answer"},
		{get(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), "is not trusted"},
		{get(&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Cert: &x509.Certificate{}, Reason: x509.Expired}}), "is not trusted"},
		{get(errors.New("getting credentials: exec: executable cloud-auth not found")), "could not be asked: getting credentials"},
		{get(io.EOF), "could not be asked: EOF"},
	} {
		got := c.Explain(e.err)
		var f *cluster.Failure
		if !errors.As(got, &f) || f.Fix == "" || !strings.Contains(got.Error(), e.says) || !errors.Is(got, e.err) {
			t.Errorf("%v: %v", e.err, got)
		}
	}
	if c.Explain(nil) != nil || !errors.Is(c.Explain(context.Canceled), context.Canceled) {
		t.Error("what needs no explanation gets one")
	}
	if missing := apierrors.NewNotFound(pods, "a"); !cluster.IsNotFound(c.Explain(missing)) {
		t.Error("not found is no longer known")
	}
}

func get(err error) error { return &url.Error{Op: "Get", URL: "https://x/version", Err: err} }

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u, ok := clustertest.Objects(t, text)[0].(*unstructured.Unstructured)
	if !ok {
		t.Fatal("no object")
	}
	return u
}

func TestReady(t *testing.T) {
	for _, e := range []struct{ object, says string }{
		{"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}", ""},
		{"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: b, generation: 2}\nspec: {replicas: 2}\nstatus: {observedGeneration: 2, replicas: 2, updatedReplicas: 2, availableReplicas: 2}", ""},
		{"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: b, generation: 2}\nspec: {replicas: 2}\nstatus: {observedGeneration: 1, replicas: 2, updatedReplicas: 2, availableReplicas: 2}", "2 of 2"},
		{"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: b}\nspec: {selector: {matchLabels: {app: a}}}\nstatus: {replicas: 1}", "ErrImageNeverPull"},
		{"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a}", "not established"},
	} {
		s := clustertest.New(t, e.object, "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: b, labels: {app: a}}\nstatus: {phase: Pending, containerStatuses: [{name: a, state: {waiting: {reason: ErrImageNeverPull}}}]}")
		ok, why, err := s.Cluster.Ready(t.Context(), object(t, e.object))
		if err != nil || ok != (e.says == "") || !strings.Contains(why, e.says) {
			t.Errorf("%s\n%v %q %v, want %q", e.object, ok, why, err, e.says)
		}
	}
}

func TestTrouble(t *testing.T) {
	ready := core.PodCondition{Type: core.PodReady, Status: core.ConditionTrue}
	for _, e := range []struct {
		status core.PodStatus
		says   string
	}{
		{core.PodStatus{Phase: core.PodRunning, Conditions: []core.PodCondition{ready}}, ""},
		{core.PodStatus{Phase: core.PodSucceeded}, ""},
		{core.PodStatus{Conditions: []core.PodCondition{{Type: core.PodScheduled, Status: core.ConditionFalse, Message: "no nodes"}}}, "no nodes"},
		{core.PodStatus{InitContainerStatuses: []core.ContainerStatus{{Name: "i", State: core.ContainerState{Terminated: &core.ContainerStateTerminated{ExitCode: 3}}}}}, "container i ended with 3"},
		{core.PodStatus{ContainerStatuses: []core.ContainerStatus{{Name: "c", State: core.ContainerState{Running: &core.ContainerStateRunning{}}}}}, "container c is not ready"},
		{core.PodStatus{}, "starting"},
	} {
		if got := cluster.Trouble(&core.Pod{Status: e.status}); got != e.says && (e.says == "" || !strings.Contains(got, e.says)) {
			t.Errorf("%+v: %q, want %q", e.status, got, e.says)
		}
	}
}

// TestAsk: the answer of a pod that is no success says which, and a pod that does not answer is named.
func TestAsk(t *testing.T) {
	s := clustertest.New(t)
	s.Answer("shop", "web", 15000, map[string]any{"/a": map[string]int{"n": 1}})
	got, err := s.Cluster.Ask(t.Context(), "shop", "web", 15000, "/a")
	if err != nil || strings.TrimSpace(string(got)) != `{"n":1}` {
		t.Errorf("%q %v", got, err)
	}
	_, err = s.Cluster.Ask(t.Context(), "shop", "web", 15000, "/b")
	var no *cluster.NoAnswer
	if !errors.As(err, &no) || no.Status != 404 {
		t.Errorf("%v", err)
	}
	if _, err := s.Cluster.Ask(t.Context(), "shop", "nobody", 15000, "/a"); err == nil || !strings.Contains(err.Error(), "shop/nobody") {
		t.Errorf("%v", err)
	}
}

func TestWaitFor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	err := cluster.WaitFor(ctx, func(context.Context) (bool, string, error) { return false, "one pod is missing", nil })
	if err == nil || err.Error() != "one pod is missing" {
		t.Errorf("%v", err)
	}
	broken := errors.New("broken")
	if err := cluster.WaitFor(t.Context(), func(context.Context) (bool, string, error) { return false, "", broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestWaitForOutlastsWhatPasses: an API server that restarts, or whose store elects, is asked again, and told of when it is not back in time.
func TestWaitForOutlastsWhatPasses(t *testing.T) {
	c := &cluster.Cluster{Server: "https://x"}
	pods := schema.GroupResource{Resource: "pods"}
	for _, e := range []struct {
		err    error
		passes bool
	}{
		{get(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), true},
		{get(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), true},
		{get(io.EOF), true},
		{get(errors.New("http2: client connection lost")), true},
		{get(errors.New("http2: server sent GOAWAY and closed the connection; LastStreamID=1")), true},
		{apierrors.NewInternalError(errors.New("etcdserver: leader changed")), true},
		{apierrors.NewServerTimeout(pods, "get", 1), true},
		{apierrors.NewTimeoutError("it took too long", 1), true},
		{apierrors.NewServiceUnavailable("starting"), true},
		{apierrors.NewTooManyRequestsError("busy"), true},
		{apierrors.NewForbidden(pods, "a", errors.New("no")), false},
		{apierrors.NewUnauthorized("no"), false},
		{get(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), false},
		{get(errors.New("getting credentials: exec: executable cloud-auth not found")), false},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			asked := 0
			err := cluster.WaitFor(ctx, func(context.Context) (bool, string, error) {
				if asked++; asked <= 3 {
					return false, "", c.Explain(e.err)
				}
				return true, "", nil
			})
			if e.passes && (err != nil || asked != 4) || !e.passes && (!errors.Is(err, e.err) || asked != 1) {
				t.Errorf("%v: asked %d times, %v", e.err, asked, err)
			}
			if !e.passes {
				return
			}
			if err := cluster.WaitFor(ctx, func(context.Context) (bool, string, error) { return false, "", e.err }); !errors.Is(err, e.err) || time.Since(deadline(ctx)) < 0 {
				t.Errorf("when the time is over: %v", err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // what is said last counts, and not that the time was over in the middle of a question
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := cluster.WaitFor(ctx, func(ctx context.Context) (bool, string, error) {
			switch left := time.Until(deadline(ctx)); {
			case left > 40*time.Second:
				return false, "", apierrors.NewServiceUnavailable("starting")
			case left > 20*time.Second:
				return false, "one pod is missing", nil
			}
			<-ctx.Done()
			return false, "", ctx.Err()
		})
		if err == nil || err.Error() != "one pod is missing" {
			t.Errorf("%v", err)
		}
	})
}

func deadline(ctx context.Context) time.Time {
	d, _ := ctx.Deadline()
	return d
}

// TestUnreached: what kubelets, API servers and connections say, as a cause and the next step.
func TestUnreached(t *testing.T) {
	s := clustertest.New(t)
	pods := schema.GroupResource{Resource: "pods"}
	for _, c := range []struct {
		err         error
		cause, next string
	}{
		{errors.New(`port 15000 of the pod: an error occurred forwarding 15000: failed to connect to localhost:15000 inside namespace "x", IPv4: dial tcp4 127.0.0.1:15000: connect: connection refused`), "nobody listens at port 15000 of pod shop/web", "logs web"},
		{errors.New("unable to upgrade connection: pod not found (\"web_shop\")"), "pod shop/web is not there", "get pods"},
		{apierrors.NewNotFound(pods, "web"), "pod shop/web is not there", "get pods"},
		{apierrors.NewForbidden(pods, "web", errors.New("User \"eve\" cannot create resource \"pods/portforward\"")), "you may not forward ports", "pods/portforward"},
		{errors.New("error dialing backend: dial tcp 198.18.0.2:10250: connect: connection refused"), "does not reach the node", "10250"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}, "the API server at https://cluster.test does not answer", "cluster-info"},
		{io.EOF, "broke off the connection", "describe pod web"},
		{context.DeadlineExceeded, "does not answer in time", "describe pod web"},
		{errors.New("it is Tuesday"), "could not be asked: it is Tuesday", "describe pod web"},
	} {
		s.Break("shop", "web", 15000, c.err)
		_, err := s.Cluster.Ask(t.Context(), "shop", "web", 15000, "/a")
		var f *cluster.Failure
		if !errors.As(err, &f) || !strings.Contains(f.Cause, c.cause) || !strings.Contains(f.Fix, c.next) || !errors.Is(err, c.err) {
			t.Errorf("%v:\n%+v", c.err, err)
		}
	}
	s.Break("shop", "web", 15000, context.Canceled)
	if _, err := s.Cluster.Ask(t.Context(), "shop", "web", 15000, "/a"); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up is told %v", err)
	}
}
