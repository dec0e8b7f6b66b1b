package ctl

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/malha-mesh/malha/internal/explain"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
)

// mostEndpoints is how many endpoints of one destination are shown to a person.
const mostEndpoints = 8

// walkView prints walks and traces to a person.
type walkView struct {
	u     *ui
	lines []string
}

func newWalkView(u *ui) *walkView { return &walkView{u: u} }

func (v *walkView) show(w *explain.Walk) {
	v.walk(w)
	v.flush()
}

func (v *walkView) flush() {
	for _, l := range v.lines {
		fmt.Fprintln(v.u.out, strings.TrimRight(l, " "))
	}
	v.lines = nil
}

// step adds a line: what it is about, what happens, and where that is written.
func (v *walkView) step(label, text string, origin ident.Origin) {
	v.lines = append(v.lines, paint(v.u.outColor, dim, fmt.Sprintf("%-10s ", label))+text+v.from(origin))
}

func (v *walkView) from(o ident.Origin) string {
	if o.IsZero() {
		return ""
	}
	if o.File != "" {
		o.File = shortPath(o.File)
	}
	return "  " + paint(v.u.outColor, dim, "["+o.String()+"]")
}

func (v *walkView) yes(text string) string { return paint(v.u.outColor, green, "✓") + " " + text }
func (v *walkView) no(text string) string  { return paint(v.u.outColor, red, "✗") + " " + text }

func (v *walkView) walk(w *explain.Walk) {
	v.lines = append(v.lines, paint(v.u.outColor, bold, w.Request.Method+" "+w.Request.URL)+" from "+w.From.String())
	for _, h := range w.Request.Headers {
		v.step("", h.Name+": "+h.Value, ident.Origin{})
	}
	v.step("listener", fmt.Sprintf("%s %s: %s", w.Listener.Name, w.Listener.Bind, w.Listener.Why), w.Listener.Origin)
	if n := w.Listener.ServerName; n != "" {
		what := "its TLS passes through"
		if w.Listener.Ends {
			what = "its TLS ends here"
		}
		v.step("server", n+": "+what, ident.Origin{})
	}
	v.policies("", w.Policies)
	if w.Host != nil {
		v.step("host", w.Host.Name+": "+w.Host.Why, w.Host.Origin)
	}
	for _, r := range w.Rules {
		text := fmt.Sprintf("%d %s: %s", r.Index, r.Name, r.Why)
		if r.Matched {
			text = v.yes(text)
		} else {
			text = v.no(text)
		}
		v.step("rule", text, r.Origin)
	}
	v.limits("", w.Limits)
	if w.Action != nil && w.Action.CORS != nil {
		v.step("cors", w.Action.CORS.Why, w.Action.Origin)
	}
	if w.Answer == nil || w.Action != nil && w.Action.Fault != nil {
		v.action(w.Action)
	}
	if w.Answer != nil {
		v.answer("", w.Answer)
	}
	for i := range w.Branches {
		v.branch(w, &w.Branches[i])
	}
	v.lines = append(v.lines, "")
	var ends []string
	shares := map[string]float64{} // a workload may be an endpoint of several destinations
	for i := range w.Outcomes {
		text := outcomeText(&w.Outcomes[i])
		if _, met := shares[text]; !met {
			ends = append(ends, text)
		}
		shares[text] += w.Outcomes[i].Share
	}
	for _, text := range ends {
		v.step(percent(shares[text]), text, ident.Origin{})
	}
}

func (v *walkView) action(a *explain.Action) {
	if a == nil || a.Name == "tcp" {
		return
	}
	timeout := "none"
	if a.Timeout > 0 {
		timeout = a.Timeout.D().String()
	}
	if a.Response > 0 {
		timeout += ", of the response head " + a.Response.D().String()
	}
	if a.Idle > 0 {
		timeout += ", idle " + a.Idle.D().String()
	}
	v.step("timeout", timeout, ident.Origin{})
	retries := "none"
	if a.Retry != nil {
		retries = fmt.Sprintf("%d, on %s", a.Retry.Attempts, strings.Join(a.Retry.On, ", "))
		if a.Retry.PerTry > 0 {
			retries += ", each in " + a.Retry.PerTry.D().String()
		}
		if b := a.Retry.BackoffBase.D(); b > 0 && b != 25*time.Millisecond { // else the default
			retries += ", backing off from " + b.String()
		}
		if a.Retry.AnyHost {
			retries += ", at any endpoint"
		}
		if a.Retry.Farther {
			retries += ", also in other localities"
		}
	}
	v.step("retries", retries, ident.Origin{})
	if f := a.Fault; f != nil {
		if f.Delay > 0 {
			v.step("fault", fmt.Sprintf("%s %% wait %s", number(f.DelayPercent), f.Delay.D()), a.Origin)
		}
		switch {
		case f.AbortStatus != 0:
			v.step("fault", fmt.Sprintf("%s %% are answered with %d", number(f.AbortPercent), f.AbortStatus), a.Origin)
		case f.AbortGRPC != nil:
			v.step("fault", fmt.Sprintf("%s %% are answered with gRPC status %d", number(f.AbortPercent), *f.AbortGRPC), a.Origin)
		}
	}
	v.headers("headers", a.Headers)
	v.mirrors("mirror", a.Mirrors, a.Origin)
}

func (v *walkView) mirrors(name string, all []plan.Mirror, origin ident.Origin) {
	for _, m := range all {
		v.step(name, fmt.Sprintf("%s %% are copied to %s", number(m.Percent), m.Cluster), origin)
	}
}

func (v *walkView) headers(name string, o *plan.HeaderOps) {
	if o == nil {
		return
	}
	for _, side := range []struct {
		name string
		ops  *plan.FieldOps
	}{{"request", &o.Request}, {"response", &o.Response}} {
		for _, n := range side.ops.Remove {
			v.step(name, side.name+": remove "+n, ident.Origin{})
		}
		for _, f := range side.ops.Set {
			v.step(name, side.name+": set "+f.Name+": "+f.Value, ident.Origin{})
		}
		for _, f := range side.ops.Add {
			v.step(name, side.name+": add "+f.Name+": "+f.Value, ident.Origin{})
		}
	}
}

func (v *walkView) branch(w *explain.Walk, b *explain.Branch) {
	what := b.Service
	if what == "" {
		what = cmp.Or(b.Cluster, "nobody")
	}
	if b.Port != 0 {
		what += ":" + strconv.Itoa(b.Port)
	}
	if b.Subset != "" {
		what += " subset " + b.Subset
	}
	if b.Balancer != "" && len(b.Endpoints) > 1 {
		what += ", " + string(b.Balancer)
	}
	v.step(percent(b.Share)+" to", paint(v.u.outColor, bold, what), b.Origin)
	if a := w.Action; a != nil && b.Rewrite != nil {
		v.step("  rewrite", fmt.Sprintf("%s %s at %s", b.Method, b.Path, b.Authority), a.Origin)
	}
	if w.Action != nil && b.CORS != nil {
		v.step("  cors", b.CORS.Why, w.Action.Origin)
	}
	v.headers("  headers", b.Headers)
	if k := b.Key; k != nil {
		text := "none in the request: any endpoint will do"
		switch {
		case k.New:
			text = k.By + ": the client is given one"
		case k.By != "":
			text = k.By + " " + strconv.Quote(k.Value)
		}
		v.step("  hash key", text, b.Origin)
	}
	if s := b.Session; s != nil {
		by := "header " + s.Header
		if s.Cookie != nil {
			by = "cookie " + s.Cookie.Name
		}
		v.step("  session", "kept by "+by, b.Origin)
	}
	if w.Action != nil {
		v.mirrors("  mirror", b.Mirrors, w.Action.Origin)
	}
	if l := limitsText(&b.Limits); l != "" {
		v.step("  limits", l, b.Origin)
	}
	if o := b.Outlier; o != nil {
		v.step("  ejection", ejectionText(o), b.Origin)
	}
	if b.Answer != nil {
		v.answer("  ", b.Answer)
	}
	var before []string
	for i := range b.Endpoints {
		if i == mostEndpoints {
			v.step("  endpoint", fmt.Sprintf("… and %d more; -o json shows all", len(b.Endpoints)-i), ident.Origin{})
			break
		}
		e := &b.Endpoints[i]
		v.endpoint(e, b.Originate)
		inner := &walkView{u: v.u}
		inner.arrival(e.Arrival)
		if before != nil && slices.Equal(inner.lines, before) {
			continue
		}
		before = inner.lines
		v.lines = append(v.lines, inner.lines...)
	}
}

func (v *walkView) limits(indent string, ls []explain.Limit) {
	for _, l := range ls {
		text := fmt.Sprintf("%s: %d in %s", l.Name, l.Requests, l.Per.D())
		switch l.By {
		case plan.ByIdentity, plan.ByAddress:
			text += " for each " + string(l.By)
		case plan.ByHeader:
			text += " for each value of " + l.Header
		}
		if l.Burst > 0 {
			text += fmt.Sprintf(", %d at once", l.Burst)
		}
		if l.Applies {
			text = v.yes(text)
		} else {
			text = v.no(text + ": " + l.Why)
		}
		v.step(indent+"rate limit", text, l.Origin)
	}
}

func ejectionText(o *plan.Outlier) string {
	var after []string
	if o.Consecutive5xx > 0 {
		after = append(after, fmt.Sprintf("%d answers 5xx", o.Consecutive5xx))
	}
	if o.ConsecutiveGatewayError > 0 {
		after = append(after, fmt.Sprintf("%d gateway errors", o.ConsecutiveGatewayError))
	}
	if len(after) == 0 {
		return "off"
	}
	return "after " + strings.Join(after, " or ") + " in a row"
}

func limitsText(l *plan.Limits) string {
	var out []string
	for _, x := range []struct {
		n    uint32
		what string
	}{{l.MaxConnections, "connections"}, {l.MaxPendingRequests, "pending requests"}, {l.MaxRequests, "requests"}, {l.MaxRetries, "retries"}, {l.MaxRequestsPerConnection, "requests on a connection"}} {
		if x.n > 0 {
			out = append(out, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	return strings.Join(out, ", ")
}

func (v *walkView) endpoint(e *explain.Endpoint, originate *plan.ClientTLS) {
	text := e.Address
	if !e.Workload.IsZero() {
		text = e.Workload.String() + " " + text
	}
	switch {
	case e.Share == 0:
		text += ", nothing while nearer ones are well"
	case e.Share < 1:
		text += ", " + percent(e.Share)
	}
	if e.Near != "" {
		text += ", " + strings.TrimSpace(e.Locality+" "+e.Near)
	}
	switch {
	case e.MTLS:
		text += ", mutual TLS with " + e.Identity
	case originate != nil:
		text += ", " + originateText(originate)
	case e.Workload.IsZero():
		text += ", outside the mesh, as it is"
	default:
		text += ", plaintext"
	}
	v.step("  endpoint", text, ident.Origin{})
}

// originateText says what TLS an endpoint outside the mesh is spoken to with.
func originateText(t *plan.ClientTLS) string {
	text := "TLS"
	if t.SNI != "" {
		text += " for " + t.SNI
	}
	if t.Secret != "" {
		text += ", with the certificate " + t.Secret
	}
	if t.Insecure {
		text += ", whose certificate is not verified"
	}
	return text
}

func (v *walkView) arrival(a *explain.Arrival) {
	if a == nil {
		return
	}
	tls := string(a.Listener.TLS)
	if tls == "" {
		tls = "none"
	}
	v.step("  arrives", fmt.Sprintf("%s, TLS %s", a.Listener.Name, tls), a.Listener.Origin)
	v.policies("  ", a.Policies)
	v.limits("  ", a.Limits)
	if a.Answer != nil {
		v.answer("  ", a.Answer)
		return
	}
	v.step("  allowed", v.yes(a.Allowed), ident.Origin{})
	if a.App != "" {
		v.step("  program", a.App, ident.Origin{})
	}
}

func (v *walkView) policies(indent string, ps []explain.Policy) {
	for _, p := range ps {
		text := strings.ToUpper(string(p.Action)) + " " + p.Name
		if p.DryRun {
			text += " (dry run)"
		}
		if p.Matched {
			v.step(indent+"policy", v.yes(fmt.Sprintf("%s: rule %d matches", text, p.Rule)), p.Origin)
			continue
		}
		v.step(indent+"policy", v.no(text+": no rule matches"), p.Origin)
		for _, r := range p.Reasons {
			v.step("", "    "+r, ident.Origin{})
		}
	}
}

func (v *walkView) answer(indent string, a *explain.Answer) {
	v.step(indent+"answer", paint(v.u.outColor, yellow, answerText(a)), a.Origin)
}

func answerText(a *explain.Answer) string {
	text := "the connection is closed"
	switch {
	case a.GRPC != nil:
		text = fmt.Sprintf("gRPC status %d", *a.GRPC)
	case a.Status != 0:
		text = strconv.Itoa(a.Status)
	}
	if a.Flags != "" {
		text += " " + a.Flags
	}
	if a.Location != "" {
		return text + " to " + a.Location
	}
	if a.Text != "" {
		text += ": " + a.Text
	}
	return text
}

func outcomeText(o *explain.Outcome) string {
	switch {
	case o.Answer != nil:
		return fmt.Sprintf("%s answers %s", o.Answer.By, answerText(o.Answer))
	case o.External != "":
		return o.External + " outside the mesh answers"
	case o.Subset != "":
		return fmt.Sprintf("%s answers (subset %s)", o.Workload, o.Subset)
	case o.Version != "":
		return fmt.Sprintf("%s answers (version %s)", o.Workload, o.Version)
	}
	return o.Workload.String() + " answers"
}

// percent shows a share of 1.
func percent(share float64) string { return number(share*100) + " %" }

// number shows a percentage with at most two digits behind the point.
func number(f float64) string {
	return strconv.FormatFloat(math.Round(f*100)/100, 'f', -1, 64)
}

// trace prints the hops of a request.
func (v *walkView) trace(t *explain.Trace) {
	first := t.Hops[0]
	v.lines = append(v.lines, paint(v.u.outColor, bold, first.Method+" "+first.Authority+first.Path)+" "+t.ID,
		fmt.Sprintf("%s, %s", first.Start.Format("2006-01-02T15:04:05.000Z07:00"), millis(first.Millis)))
	for i := range t.Hops {
		h := &t.Hops[i]
		what := string(h.Direction)
		if h.Listener != "" && h.Listener != what {
			what += " " + h.Listener
		}
		v.lines = append(v.lines, "")
		v.step(strconv.Itoa(i+1), paint(v.u.outColor, bold, h.Node.String())+" "+what, ident.Origin{})
		if h.Path != first.Path || h.Authority != first.Authority {
			v.step("  request", h.Method+" "+h.Authority+h.Path, ident.Origin{})
		}
		if h.Origin != "" {
			v.step("  rule", strings.TrimSpace(h.Route+"  "+paint(v.u.outColor, dim, "["+h.Origin+"]")), ident.Origin{})
		}
		if h.Endpoint != "" {
			to := h.Endpoint
			if !h.Workload.IsZero() {
				to = h.Workload.String() + " " + to
			}
			v.step("  sent to", to+", "+h.Cluster, ident.Origin{})
		}
		took := millis(h.Millis)
		if h.Upstream != nil {
			took += ", of which " + millis(*h.Upstream) + " until the answer began"
		}
		text := fmt.Sprintf("%d after %s", h.Status, took)
		if h.Detail != "" && h.Detail != "via_upstream" {
			text += ", " + h.Detail
		}
		v.step("  answer", text, ident.Origin{})
		for _, f := range h.Flags {
			v.step("  "+f.Name, paint(v.u.outColor, yellow, f.Meaning), ident.Origin{})
		}
		if h.Failure != "" {
			v.step("  cause", h.Failure, ident.Origin{})
		}
	}
	v.flush()
}
