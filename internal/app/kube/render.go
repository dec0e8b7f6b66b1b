package kube

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	v1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/malha-mesh/malha/internal/config/gateway"
	"github.com/malha-mesh/malha/internal/model"
)

// maxMessage is the longest message of a condition that the API server takes (metav1.Condition), in bytes.
const maxMessage = 32768

// clusterFeature is what of the Gateway API works on a cluster and not on one machine.
const clusterFeature = "GatewayInfrastructure"

// tree is JSON as the API machinery's unstructured objects hold it: maps, lists, strings, int64 and bools.
type tree = map[string]any

// render returns what the status of an object should be, given what it is now: what others wrote there stays. now is when
// conditions changed that are not what they were.
func render(s *model.Status, have tree, now time.Time) tree {
	out := tree{}
	for k, v := range have {
		out[k] = v
	}
	if len(s.Conditions) > 0 {
		out["conditions"] = conditions(s.Conditions, have["conditions"], s.Generation, now, true)
	}
	if s.Listeners != nil || have["listeners"] != nil {
		out["listeners"] = listeners(s, have["listeners"], now)
	}
	if target := reference(s.Target); target != nil {
		out["targetRef"] = target
	}
	switch s.Kind {
	case "Gateway":
		if s.ListenerSets > 0 || have["attachedListenerSets"] != nil {
			out["attachedListenerSets"] = int64(s.ListenerSets)
		}
	case "GatewayClass":
		all := slices.Clone(s.Features)
		if len(all) > 0 { // here there are resources for labels and annotations to go to
			all = append(all, clusterFeature)
			slices.Sort(all)
		}
		features := make([]any, len(all))
		for i, f := range all {
			features[i] = tree{"name": f}
		}
		out["supportedFeatures"] = features
	case "BackendTLSPolicy":
		out["ancestors"] = parents(s, "ancestorRef", have["ancestors"], now)
	default:
		if s.Parents != nil || have["parents"] != nil {
			out["parents"] = parents(s, "parentRef", have["parents"], now)
		}
	}
	return out
}

// sometimes is the condition that a Gateway of ours has only while clients without a valid certificate are let in. Other types that we
// don't say are somebody else's.
const sometimes = string(v1.GatewayConditionInsecureFrontendValidationMode)

// conditions returns the list for a status: with keep, those of other types stay.
func conditions(want []model.Condition, have any, generation int64, now time.Time, keep bool) []any {
	old := map[string]tree{}
	var order []string
	list, _ := have.([]any)
	for _, v := range list {
		if c, ok := v.(tree); ok {
			t, _ := c["type"].(string)
			old[t] = c
			order = append(order, t)
		}
	}
	made := map[string]tree{}
	var added []string
	for i := range want {
		w := &want[i]
		c := tree{
			"type": w.Type, "status": truth(w.Status), "reason": w.Reason, "message": clip(w.Message, maxMessage),
			"lastTransitionTime": now.UTC().Format(time.RFC3339),
		}
		if generation > 0 {
			c["observedGeneration"] = generation
		}
		if o := old[w.Type]; o == nil {
			added = append(added, w.Type)
		} else if o["status"] == c["status"] && o["lastTransitionTime"] != nil {
			c["lastTransitionTime"] = o["lastTransitionTime"]
		}
		made[w.Type] = c
	}
	out := []any{}
	for _, t := range order { // the order that it has: a mere change of order is no change
		switch {
		case made[t] != nil:
			out = append(out, made[t])
		case keep && t != sometimes:
			out = append(out, old[t])
		}
	}
	for _, t := range added {
		out = append(out, made[t])
	}
	return out
}

func truth(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

// clip shortens s to n bytes, between characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const more = "…"
	return strings.ToValidUTF8(s[:n-len(more)], "") + more
}

func listeners(s *model.Status, have any, now time.Time) []any {
	old := map[string]tree{}
	list, _ := have.([]any)
	for _, v := range list {
		if l, ok := v.(tree); ok {
			name, _ := l["name"].(string)
			old[name] = l
		}
	}
	out := []any{}
	for i := range s.Listeners {
		l := &s.Listeners[i]
		kinds := []any{}
		for _, k := range l.Kinds {
			group, kind, _ := strings.Cut(k, "/")
			kinds = append(kinds, tree{"group": group, "kind": kind})
		}
		out = append(out, tree{
			"name": l.Name, "supportedKinds": kinds, "attachedRoutes": int64(l.Routes),
			"conditions": conditions(l.Conditions, old[l.Name]["conditions"], s.Generation, now, false),
		})
	}
	return out
}

// parents returns the entries of a route for its parents, or of a policy for its ancestors: ours, behind those of other
// controllers, which own what they wrote.
func parents(s *model.Status, ref string, have any, now time.Time) []any {
	list, _ := have.([]any)
	out := []any{}
	var old []tree
	for _, v := range list {
		p, ok := v.(tree)
		if !ok {
			continue
		}
		if p["controllerName"] == gateway.ControllerName {
			old = append(old, p)
		} else {
			out = append(out, p)
		}
	}
	for i := range s.Parents {
		written := reference(s.Parents[i].Ref)
		if written == nil {
			continue
		}
		var before any
		if j := slices.IndexFunc(old, func(o tree) bool { return same(o[ref], written) }); j >= 0 {
			before = old[j]["conditions"]
		}
		out = append(out, tree{
			"controllerName": gateway.ControllerName, ref: written,
			"conditions": conditions(s.Parents[i].Conditions, before, s.Generation, now, false),
		})
	}
	return out
}

// reference reads a reference that a dialect wrote, nil for none. Its numbers, which are ports, become what unstructured objects hold.
func reference(data []byte) tree {
	var t tree
	if json.Unmarshal(data, &t) != nil { // none: a dialect writes only JSON there
		return nil
	}
	for k, v := range t {
		if f, ok := v.(float64); ok {
			t[k] = int64(f)
		}
	}
	return t
}

// same reports whether two trees are the same JSON.
func same(a, b any) bool {
	x, err := json.Marshal(a)
	if err != nil {
		return false
	}
	y, err := json.Marshal(b)
	return err == nil && string(x) == string(y)
}

// Condition types of objects that have no conditions of their own in their API (Istio's kinds, and ours).
const (
	condReconciled = "Reconciled"
	reasonInForce  = "InForce"
	reasonWarnings = "InForceWithWarnings"
	reasonRefused  = "Refused"
	maxValidation  = 32
)

// renderChecked is render for an object of Istio's kinds and our own: whether it is in force, and what is wrong with it
// (istio.meta.v1alpha1.IstioStatus).
func renderChecked(generation int64, ds []model.Diagnostic, have tree, now time.Time) tree {
	out := tree{}
	for k, v := range have {
		out[k] = v
	}
	c := model.Condition{Type: condReconciled, Status: true, Reason: reasonInForce}
	var lines []string
	messages := []any{}
	for i := range ds {
		d := &ds[i]
		if d.Severity == model.Info {
			continue
		}
		if d.Severity == model.Error {
			c.Status, c.Reason = false, reasonRefused
		} else if c.Status {
			c.Reason = reasonWarnings
		}
		line := d.Code + ": " + d.Message
		if d.Path != "" {
			line = d.Code + " " + d.Path + ": " + d.Message
		}
		if d.Hint != "" {
			line += " (" + d.Hint + ")"
		}
		lines = append(lines, line)
		if len(messages) < maxValidation {
			messages = append(messages, tree{
				"type":  tree{"code": d.Code, "name": d.Path},
				"level": strings.ToUpper(string(d.Severity)), "documentationUrl": docsURL + strings.ToLower(d.Code),
			})
		}
	}
	c.Message = strings.Join(lines, "; ")
	out["conditions"] = conditions([]model.Condition{c}, have["conditions"], generation, now, true)
	if generation > 0 {
		out["observedGeneration"] = generation
	}
	if len(messages) > 0 || have["validationMessages"] != nil {
		out["validationMessages"] = messages
	}
	return out
}

// docsURL is where a code is explained.
const docsURL = "https://malha.dev/docs/diagnostics#"
