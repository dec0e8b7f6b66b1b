// Package admit answers what the API server asks before it stores an object: /inject puts the proxy into pods, /validate checks
// configuration as `malha analyze` checks one object of a folder.
//
// In: admission.k8s.io/v1 AdmissionReviews over HTTP; the caller owns the listener and its certificate. Out: the review's
// answer. It keeps nothing, changes nothing (dry runs need no care), and starts no goroutine. What can't be answered is an
// error of HTTP, and then the webhook's failurePolicy decides: see chart/malha/templates/webhooks.yaml for what each is and
// which pods and objects are asked about at all. What is wrong with an object is told with its path and the next step.
package admit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/malha-mesh/malha/internal/inject"
)

const (
	maxBody  = 3 << 20          // the API server's own limit for an object, and then some for the old one
	maxTime  = 5 * time.Second  // of the webhook configurations
	atOnce   = 64               // answers that are being worked out
	maxKept  = atOnce * maxBody // bytes of reviews that are being read or answered
	maxWarn  = 20               // warnings of an answer
	warnSize = 240              // bytes of one: the API server cuts off at 256
	apiGroup = "admission.k8s.io/v1"
)

// Options are what the answers depend on.
type Options struct {
	// Inject returns the settings of injection that hold now.
	Inject func() *inject.Config
	// Namespace returns what a namespace says. It asks the API server when its cache does not know it: a pod of a namespace that
	// is a moment old must not start without its proxy.
	Namespace func(ctx context.Context, name string) (inject.Namespace, error)
	// Counted is told of each answer: "inject" or "validate", what became of it (an inject.Code, "accepted", "refused" …; "failed":
	// nothing could be answered), and the time it took; nil nobody.
	Counted func(webhook, outcome string, took time.Duration)
	Log     *slog.Logger
}

type handler struct {
	o     Options
	slots chan struct{}
	kept  atomic.Int64 // bytes of reviews
}

// New returns the handler of both webhooks.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Counted == nil {
		o.Counted = func(string, string, time.Duration) {}
	}
	h := &handler{o: o, slots: make(chan struct{}, atOnce)}
	mux := http.NewServeMux()
	mux.Handle("POST /inject", h.serve("inject", h.inject))
	mux.Handle("POST /validate", h.serve("validate", h.validate))
	return mux
}

// failure is an answer of HTTP instead of a review's.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }

func fail(status int, format string, args ...any) error {
	return &failure{status, fmt.Errorf(format, args...)}
}

// answer is what a webhook says of an object.
type answer struct {
	outcome  string // for metrics
	refused  string // why it is not allowed; "" it is
	patch    []byte
	warnings []string
	audit    map[string]string
}

// serve is the HTTP around a webhook.
func (h *handler) serve(webhook string, decide func(context.Context, *admissionv1.AdmissionRequest) (*answer, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), maxTime)
		defer cancel()
		outcome, began := "failed", time.Now()
		defer func() {
			if p := recover(); p != nil {
				h.o.Log.Error("a webhook panicked", "webhook", webhook, "panic", p, "stack", string(debug.Stack()))
				http.Error(w, "internal error; see the logs of malhad", http.StatusInternalServerError)
			}
			h.o.Counted(webhook, outcome, time.Since(began))
		}()
		// Who sends slowly keeps nobody waiting: a review is read before it takes a place.
		body := &metered{r: r.Body, kept: &h.kept}
		defer body.forget()
		var review *admissionv1.AdmissionReview
		var a *answer
		text, err := read(ctx, w, r, body)
		if err == nil {
			select {
			case h.slots <- struct{}{}:
				defer func() { <-h.slots }()
			case <-ctx.Done():
				err = errBusy
			}
		}
		if err == nil {
			review, err = decode(text)
		}
		if err == nil {
			a, err = decide(ctx, review.Request)
		}
		if err != nil {
			status := http.StatusInternalServerError
			var f *failure
			if errors.As(err, &f) {
				status = f.status
			}
			h.o.Log.Warn("a webhook could not answer", "webhook", webhook, "status", status, "error", err)
			http.Error(w, err.Error(), status)
			return
		}
		outcome = a.outcome
		b, err := json.Marshal(a.review(review.Request.UID))
		if err != nil {
			outcome = "failed"
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(b) // the API server is gone: nobody to tell
	})
}

var errBusy = fail(http.StatusServiceUnavailable, "too many questions at one time")

// read returns the text of a review, which has to arrive within the time that there is for its answer.
func read(ctx context.Context, w http.ResponseWriter, r *http.Request, body *metered) ([]byte, error) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return nil, fail(http.StatusUnsupportedMediaType, "content type %q: want application/json", r.Header.Get("Content-Type"))
	}
	if by, ok := ctx.Deadline(); ok {
		_ = http.NewResponseController(w).SetReadDeadline(by) // the listener's own limit is left where there is no other
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, fail(http.StatusRequestEntityTooLarge, "the review has more than %d bytes", maxBody)
	case errors.Is(err, errBusy):
		return nil, errBusy
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fail(http.StatusRequestTimeout, "the review did not arrive within %s", maxTime)
	case err != nil:
		return nil, fail(http.StatusBadRequest, "the review can't be read: %w", err)
	}
	return text, nil
}

// metered is a body whose bytes count as kept until they are forgotten, however slowly they come.
type metered struct {
	r    io.ReadCloser
	kept *atomic.Int64 // of all bodies
	n    int64         // of this one
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.kept.Add(int64(n)) > maxKept {
		return n, errBusy
	}
	return n, err
}

func (m *metered) Close() error { return m.r.Close() }

func (m *metered) forget() { m.kept.Add(-m.n) }

// decode reads a review of the one version that is answered.
func decode(body []byte) (*admissionv1.AdmissionReview, error) {
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fail(http.StatusBadRequest, "the review can't be read: %w", err)
	}
	switch {
	case review.APIVersion != apiGroup || review.Kind != "AdmissionReview":
		return nil, fail(http.StatusBadRequest, "%q %q: want an AdmissionReview of %s; set admissionReviewVersions: [v1] in the webhook's configuration", review.APIVersion, review.Kind, apiGroup)
	case review.Request == nil || review.Request.UID == "":
		return nil, fail(http.StatusBadRequest, "the review has no request, or it has no uid")
	}
	return &review, nil
}

func (a *answer) review(uid types.UID) *admissionv1.AdmissionReview {
	out := &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: apiGroup, Kind: "AdmissionReview"},
		Response: &admissionv1.AdmissionResponse{UID: uid, Allowed: a.refused == "", AuditAnnotations: a.audit},
	}
	if a.refused != "" {
		out.Response.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: a.refused}
	}
	if len(a.patch) > 0 {
		kind := admissionv1.PatchTypeJSONPatch
		out.Response.Patch, out.Response.PatchType = a.patch, &kind
	}
	for i, w := range a.warnings {
		if i == maxWarn {
			out.Response.Warnings = append(out.Response.Warnings, fmt.Sprintf("malha: and %d more", len(a.warnings)-i))
			break
		}
		out.Response.Warnings = append(out.Response.Warnings, short("malha: "+w))
	}
	return out
}

// short cuts a text between characters.
func short(s string) string {
	if len(s) <= warnSize {
		return s
	}
	end := 0
	for i := range s {
		if i > warnSize-len("…") {
			break
		}
		end = i
	}
	return s[:end] + "…"
}
