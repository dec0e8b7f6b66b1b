package world

import (
	"slices"

	"github.com/malha-mesh/malha/internal/model"
)

// chunkSize bounds a part of an ordered list: what a change copies, beside the list of parts.
const chunkSize = 128

// ordered is routings, oldest first, that are never changed: with and without return another, which shares all but one
// part.
type ordered [][]*model.Routing

// orderedOf takes a list that is in order.
func orderedOf(all []*model.Routing) ordered {
	return slices.Collect(slices.Chunk(all, chunkSize/2))
}

func (o ordered) flat() []*model.Routing {
	if len(o) == 1 {
		return o[0]
	}
	return slices.Concat(o...)
}

// at returns the part in which r stands or would stand, behind its equals.
func (o ordered) at(r *model.Routing) int {
	i, _ := slices.BinarySearchFunc(o, r, func(part []*model.Routing, r *model.Routing) int {
		if Older(part[0], r) <= 0 {
			return -1
		}
		return 1
	})
	return max(i-1, 0)
}

func (o ordered) with(r *model.Routing) ordered {
	if len(o) == 0 {
		return ordered{{r}}
	}
	i := o.at(r)
	part := o[i]
	n, _ := slices.BinarySearchFunc(part, r, func(have, r *model.Routing) int {
		if Older(have, r) <= 0 {
			return -1
		}
		return 1
	})
	part = slices.Insert(slices.Clone(part), n, r)
	out := slices.Clone(o)
	if len(part) <= chunkSize {
		out[i] = part
		return out
	}
	return slices.Replace(out, i, i+1, slices.Clip(part[:chunkSize/2]), slices.Clip(part[chunkSize/2:]))
}

func (o ordered) without(r *model.Routing) ordered {
	if len(o) == 0 {
		return o
	}
	for i := o.at(r); i >= 0; i-- { // equals may stand in the part before
		n := slices.Index(o[i], r)
		if n < 0 {
			continue
		}
		out := slices.Clone(o)
		if len(o[i]) == 1 {
			return slices.Delete(out, i, i+1)
		}
		out[i] = slices.Delete(slices.Clone(o[i]), n, n+1)
		return out
	}
	return o
}
