package config

import (
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// Analysis is all that is wrong or suspicious in a configuration, in the JSON in which meshes answer `malha analyze`.
type Analysis struct {
	Diagnostics []model.Diagnostic `json:"diagnostics"`
	Suppressed  []Suppression      `json:"suppressed,omitempty"`
}

// Suppression is the codes that an object's annotations want nothing to be said of.
type Suppression struct {
	Kind  string     `json:"kind"`
	Name  ident.Name `json:"name"`
	Codes []string   `json:"codes"` // "*": all
}

// The annotations that keep `malha analyze` quiet about an object: codes with a comma between, or "*".
const (
	SuppressAnnotation      = "malha.dev/analyze-suppress"
	IstioSuppressAnnotation = "galley.istio.io/analyze-suppress"
)

// Suppressions returns what the annotations of objects suppress.
func Suppressions(objects []Object) []Suppression {
	var out []Suppression
	for i := range objects {
		if codes := Suppressed(&objects[i]); len(codes) > 0 {
			out = append(out, Suppression{Kind: objects[i].Kind, Name: objects[i].Name, Codes: codes})
		}
	}
	return out
}

// Suppressed returns the codes that an object's annotations suppress; "*" for all. Istio's codes stand for ours that are
// about the same; those that have no counterpart are left out.
func Suppressed(o *Object) []string {
	out := codes(o.Annotations[SuppressAnnotation])
	for _, c := range codes(o.Annotations[IstioSuppressAnnotation]) {
		out = append(out, OurCodes(c)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func codes(s string) []string {
	return strings.FieldsFunc(strings.ToUpper(s), func(r rune) bool { return r == ',' || r == ' ' })
}

// OurCodes returns the codes that are about what an Istio code is about (istio.io "Configuration Analysis Messages");
// a code of ours, and "*", is itself.
func OurCodes(code string) []string {
	switch code {
	case "IST0101": // ReferencedResourceNotFound
		return []string{"MALHA0801", "MALHA0802", "MALHA0803", "MALHA0806", "MALHA0807", "MALHA0819"}
	case "IST0106": // SchemaValidationError
		return []string{"MALHA0201", "MALHA0202", "MALHA0203", "MALHA0204", "MALHA0205", "MALHA0206", "MALHA0208", "MALHA0210", "MALHA0211", "MALHA0212"}
	case "IST0109": // ConflictingMeshGatewayVirtualServiceHosts
		return []string{"MALHA0810"}
	case "IST0112": // VirtualServiceDestinationPortSelectorRequired
		return []string{"MALHA0804"}
	case "IST0118": // PortNameIsNotUnderNamingConvention
		return []string{"MALHA0831"}
	case "IST0122": // InvalidRegexp
		return []string{"MALHA0211"}
	case "IST0127": // NoMatchingWorkloadsFound
		return []string{"MALHA0816", "MALHA0814"}
	case "IST0130": // VirtualServiceUnreachableRule
		return []string{"MALHA0405", "MALHA0830"}
	case "IST0131": // VirtualServiceIneffectiveMatch
		return []string{"MALHA0830"}
	case "IST0132": // VirtualServiceHostNotFoundInGateway
		return []string{"MALHA0808"}
	case "IST0145": // ConflictingGateways
		return []string{"MALHA0818"}
	case "IST0002": // Deprecated
		return []string{"MALHA0213"}
	}
	if code == "*" || strings.HasPrefix(code, "MALHA") {
		return []string{code}
	}
	return nil
}
