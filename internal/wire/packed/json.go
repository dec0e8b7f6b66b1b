package packed

import (
	"io"
	"reflect"
	"slices"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
)

// ReadJSON reads a plan in JSON: what is packed of it is never decoded. What is not known, or there twice, or follows the plan, is an error
// (codec.ReadJSON).
func ReadJSON(in io.Reader) (*Plan, error) {
	out := &Plan{}
	var rest [planEnd][]byte // by number: one value has one encoding
	err := codec.ReadJSON(in, reflect.TypeFor[plan.Plan](), func(number int, body []byte) error {
		switch number {
		case planRoutes:
			out.Routes = append(out.Routes, Routes(body))
		case planClusters:
			out.Clusters = append(out.Clusters, Cluster(body))
		case planEndpoints:
			out.Endpoints = append(out.Endpoints, Endpoints(body))
		default:
			rest[number] = codec.AppendField(rest[number], number, string(body))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := out.setRest(slices.Concat(rest[:]...)); err != nil {
		return nil, err
	}
	sortPieces(out.Routes)
	sortPieces(out.Clusters)
	sortPieces(out.Endpoints)
	return out, nil
}
