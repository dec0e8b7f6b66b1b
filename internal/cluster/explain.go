package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// Failure is an error of the API server or on the way to it, with what to do about it.
type Failure struct {
	Cause string
	Fix   string
	err   error
}

func (f *Failure) Error() string { return f.Cause + "; " + f.Fix }

// Unwrap returns what the client said.
func (f *Failure) Unwrap() error { return f.err }

// IsNotFound reports whether the object was not there; IsForbidden, whether it may not be read.
func IsNotFound(err error) bool { return apierrors.IsNotFound(err) }

// IsForbidden reports whether the user has not the right.
func IsForbidden(err error) bool { return apierrors.IsForbidden(err) }

// Explain says what an error of the client means. nil stays nil.
func (c *Cluster) Explain(err error) error {
	var known *Failure
	if err == nil || errors.As(err, &known) {
		return err
	}
	var status apierrors.APIStatus
	var network net.Error
	var untrusted *tls.CertificateVerificationError
	var request *url.Error
	sent := err
	if errors.As(err, &request) { // which is a net.Error itself, whatever went wrong
		sent = request.Err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case apierrors.IsForbidden(err):
		return &Failure{fmt.Sprintf("you lack a right: %s", said(err)), "ask whoever administers the cluster for it, or use another --context; `malha check --pre` lists all that is needed", err}
	case apierrors.IsUnauthorized(err):
		return &Failure{fmt.Sprintf("the API server at %s does not know you", c.Server), "log in again, or use another --context", err}
	case apierrors.IsConflict(err) && strings.Contains(err.Error(), "conflict with"):
		return &Failure{fmt.Sprintf("somebody else has set what is to be set: %s", said(err)), "take it over with --force-conflicts, or let the other one (Helm?) make the change", err}
	case meta.IsNoMatchError(err):
		return &Failure{err.Error(), "the API server has no such kind: is it older than 1.30, or the CRD missing?", err}
	case errors.As(err, &status):
		return err // the API server says it best
	case errors.As(err, &untrusted):
		return &Failure{fmt.Sprintf("the certificate of the API server at %s is not trusted: %v", c.Server, untrusted.Err), "the kubeconfig is of another cluster, or an old one: fetch it anew", err}
	case errors.As(sent, &network):
		return &Failure{fmt.Sprintf("the API server at %s does not answer: %v", c.Server, network), "is the cluster up, and is this its address? `kubectl cluster-info` shows it", err}
	case request != nil:
		return &Failure{fmt.Sprintf("the API server at %s could not be asked: %v", c.Server, sent), "see what the kubeconfig says of it: credentials, proxy. `kubectl cluster-info` meets the same", err}
	}
	return err
}

// Unreached says what an error of Dial, or of what was said over its connection, means: three programs stand between, and each has
// its own words. nil stays nil.
func (c *Cluster) Unreached(err error, namespace, pod string, port int) error {
	var known *Failure
	if err == nil || errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" { // what we dial ourselves is the API server
		return c.Explain(err)
	}
	name, text := namespace+"/"+pod, err.Error()
	look := fmt.Sprintf("kubectl -n %s describe pod %s; kubectl -n %s logs %s --all-containers", namespace, pod, namespace, pod)
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
	switch {
	case apierrors.IsForbidden(err), strings.Contains(text, "is forbidden"):
		return &Failure{"you may not forward ports of pods in namespace " + namespace + ": " + said(err), "ask whoever administers the cluster for create on pods/portforward there", err}
	case apierrors.IsNotFound(err), strings.Contains(text, "not found"):
		return &Failure{"pod " + name + " is not there, or not any more", "kubectl -n " + namespace + " get pods; ask again if it was just replaced", err}
	case has("error dialing backend", "no preferred addresses found", "kubelet"):
		return &Failure{"the API server does not reach the node of pod " + name + ": " + said(err), "is the node up (kubectl get nodes), and may the API server connect to port 10250 of it?", err}
	case has("connection refused", "failed to connect to localhost", "no such file or directory", "sandbox"):
		return &Failure{fmt.Sprintf("nobody listens at port %d of pod %s: what runs there is starting, or has ended", port, name), look, err}
	case errors.Is(err, context.DeadlineExceeded), has("i/o timeout", "deadline exceeded"):
		return &Failure{"pod " + name + " does not answer in time", look, err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), has("EOF", "reset by peer", "broken pipe", "closed network connection", "lost connection"):
		return &Failure{"pod " + name + " broke off the connection, as one does that is just ending", look, err}
	}
	if err = c.Explain(err); errors.As(err, &known) {
		return err
	}
	return &Failure{"pod " + name + " could not be asked: " + text, look, err}
}

// passes reports whether an error may be over the next time: the API server, or its store, is busy, away or has just broken off.
func passes(err error) bool {
	var status apierrors.APIStatus
	var untrusted *tls.CertificateVerificationError
	var network net.Error
	var request *url.Error
	sent := err
	if errors.As(err, &request) { // which is a net.Error itself, whatever went wrong
		sent = request.Err
	}
	switch {
	case errors.As(err, &status):
		code := status.Status().Code
		return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests
	case errors.As(err, &untrusted):
		return false
	}
	return errors.As(sent, &network) || utilnet.IsProbableEOF(sent) || utilnet.IsHTTP2ConnectionLost(sent) || errors.Is(sent, io.ErrUnexpectedEOF)
}

// said is the message of the API server alone.
func said(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Message
	}
	return err.Error()
}
