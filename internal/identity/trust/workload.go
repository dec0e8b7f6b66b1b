package trust

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"

	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
)

// OIDWorkload is the certificate extension malhaWorkload: the name of the proxy that a certificate was issued to and the
// labels of its workload, as the CA knows them from what the proxy proved. With it the server side of a connection can
// say which workload and version called, and no request carries a header for it.
//
// It is made from a random UUID (654bb7fa-7bf6-4cee-9456-2639475d94c9) in Microsoft's arc for self-made numbers, where
// the UUID is cut into parts of at most 24 bits. The arc 2.25, which takes a UUID as one 128-bit number, cannot be used:
// crypto/x509 refuses certificates with an extension whose number has a part above 2^28.
var OIDWorkload = asn1.ObjectIdentifier{1, 2, 840, 113556, 1, 8000, 2554, 25931, 47098, 31734, 19694, 37974, 2505031, 6132937}

// maxExtension is the longest extension that is read, in bytes: five or six Kubernetes names and a little.
const maxExtension = 4 << 10

// workloadInfo is the content of the extension, in the spelling of wire/codec. Never reuse a number.
type workloadInfo struct {
	Node   ident.Name          `plan:"1"`
	Labels plan.WorkloadLabels `plan:"2"`
}

// WorkloadExtension returns the extension that says node and labels. It is not critical: who doesn't know it ignores it.
func WorkloadExtension(node ident.Name, labels plan.WorkloadLabels) (pkix.Extension, error) {
	b, err := codec.Marshal(&workloadInfo{Node: node, Labels: labels})
	return pkix.Extension{Id: OIDWorkload, Value: b}, err
}

// WorkloadOf returns what the certificate of identity id says about its proxy and its workload. Without the extension, or
// with one that a newer CA wrote and we cannot read, the answer is empty but for the namespace: the labels are words for
// metrics and decide nothing, so they must not be a reason to refuse a peer. (The control plane does decide by node,
// and an empty node is nobody's.) The namespace is always that of the identity.
func WorkloadOf(leaf *x509.Certificate, id ident.Identity) (ident.Name, plan.WorkloadLabels) {
	var w workloadInfo
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(OIDWorkload) && len(ext.Value) <= maxExtension {
			if err := codec.Unmarshal(ext.Value, &w); err != nil {
				w = workloadInfo{}
			}
			break // x509 refuses a certificate that has an extension twice
		}
	}
	w.Labels.Namespace = id.Namespace
	return w.Node, w.Labels
}
