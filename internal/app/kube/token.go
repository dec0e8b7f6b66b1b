package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/identity/ca"
	"github.com/malha-mesh/malha/internal/plan"
)

// Claims that the API server adds for a token that is bound to a pod.
const (
	claimPodName = "authentication.kubernetes.io/pod-name"
	claimPodUID  = "authentication.kubernetes.io/pod-uid"
	userPrefix   = "system:serviceaccount:"
	// maxToken is the longest token that the API server is asked about, in bytes.
	maxToken = 16 << 10
	// acquaint is how long a pod may be unknown to us that the API server knows: its watch event is on its way.
	acquaint = 3 * time.Second
	// reviewTime bounds a question to the API server.
	reviewTime = 5 * time.Second
)

// reviewer says who is behind a projected service-account token, by asking the API server: it knows whether the token is its own,
// still valid, for us (ca.Audience), and whether the pod that it is bound to still exists. The proxy is the pod: a token that is
// bound to none names no proxy and gets nothing.
type reviewer struct {
	client      kubernetes.Interface
	trustDomain string
	told        *troubles
	// known waits until the mesh knows a proxy, and says who it is.
	known func(context.Context, ident.Name) (plan.Node, bool)
}

// Authenticate is ca.Authenticator's.
func (r *reviewer) Authenticate(ctx context.Context, token string) (ca.Workload, error) {
	if len(token) > maxToken {
		return ca.Workload{}, fmt.Errorf("%w: it is longer than %d bytes", ca.ErrToken, maxToken)
	}
	asked, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	review, err := r.client.AuthenticationV1().TokenReviews().Create(asked, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{ca.Audience}},
	}, metav1.CreateOptions{})
	r.told.tried(taskReview, err)
	if err != nil {
		// Not the token's fault: the proxy comes again.
		return ca.Workload{}, fmt.Errorf("asking the API server whose token this is: %w", err)
	}
	node, account, err := bearer(&review.Status)
	if err != nil {
		return ca.Workload{}, fmt.Errorf("%w: %w", ca.ErrToken, err)
	}
	w := ca.Workload{Node: node, Identity: ident.Identity{TrustDomain: r.trustDomain, Namespace: node.Namespace, ServiceAccount: account}}
	meet, stop := context.WithTimeout(ctx, acquaint)
	defer stop()
	if n, ok := r.known(meet, node); ok && n.Identity == w.Identity { // else it is refused when it is admitted, which says why
		w.Labels = n.Workload
	}
	return w, nil
}

// bearer returns the pod that a token is bound to, and its service account.
func bearer(s *authenticationv1.TokenReviewStatus) (pod ident.Name, account string, err error) {
	switch {
	case s.Error != "":
		return pod, "", fmt.Errorf("the API server refuses it: %s", s.Error)
	case !s.Authenticated:
		return pod, "", errors.New("the API server does not know it")
	// An API server that does not look at audiences would let in tokens that were given to others.
	case !slices.Contains(s.Audiences, ca.Audience):
		return pod, "", fmt.Errorf("it is for %q, not for %q", s.Audiences, ca.Audience)
	}
	subject, ok := strings.CutPrefix(s.User.Username, userPrefix)
	namespace, account, both := strings.Cut(subject, ":")
	if !ok || !both || namespace == "" || account == "" || strings.Contains(account, ":") {
		return pod, "", fmt.Errorf("it is of %q, not of a service account", s.User.Username)
	}
	name := s.User.Extra[claimPodName]
	if len(name) != 1 || name[0] == "" || len(s.User.Extra[claimPodUID]) != 1 {
		return pod, "", errors.New("it is not bound to a pod: a projected token of the pod is needed, not one of the service account")
	}
	return ident.Name{Namespace: namespace, Name: name[0]}, account, nil
}
