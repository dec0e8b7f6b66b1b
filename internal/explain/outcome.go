package explain

import "github.com/malha-mesh/malha/internal/ident"

// outcomes adds up how a walk may end.
func (w *Walk) outcomes() []Outcome {
	var out []Outcome
	left := 1.0
	if w.Action != nil && w.Action.Fault != nil {
		f := w.Action.Fault
		if (f.AbortStatus != 0 || f.AbortGRPC != nil) && f.AbortPercent > 0 {
			share := min(f.AbortPercent/100, 1)
			a := &Answer{By: w.From, Status: f.AbortStatus, GRPC: f.AbortGRPC, Flags: "FI", Detail: "fault_filter_abort", Text: "fault filter abort", Origin: w.Action.Origin}
			if f.AbortGRPC != nil {
				a.Status = 200
			}
			out, left = append(out, Outcome{Share: share, Answer: a}), left-share
		}
	}
	switch {
	case left <= 0:
		return out
	case w.Answer != nil:
		return append(out, Outcome{Share: left, Answer: w.Answer})
	}
	for i := range w.Branches {
		b := &w.Branches[i]
		if b.Answer != nil {
			out = add(out, Outcome{Share: left * b.Share, Subset: b.Subset, Cluster: b.Cluster, Answer: b.Answer})
		}
		for j := range b.Endpoints {
			e := &b.Endpoints[j]
			o := Outcome{Share: left * b.Share * e.Share, Workload: e.Workload, Version: e.Version, Subset: b.Subset, Cluster: b.Cluster}
			switch {
			case e.Arrival != nil && e.Arrival.Answer != nil:
				o.Answer = e.Arrival.Answer
			case e.Workload.IsZero():
				o.External = e.Address
			}
			out = add(out, o)
		}
	}
	return out
}

// add merges an outcome with an equal one: two replicas that deny for one reason are one outcome.
func add(out []Outcome, o Outcome) []Outcome {
	for i := range out {
		if same(&out[i], &o) {
			out[i].Share += o.Share
			return out
		}
	}
	return append(out, o)
}

func same(a, b *Outcome) bool {
	if a.Workload != b.Workload || a.Version != b.Version || a.Subset != b.Subset || a.Cluster != b.Cluster || a.External != b.External {
		return false
	}
	if a.Answer == nil || b.Answer == nil {
		return a.Answer == b.Answer
	}
	x, y := *a.Answer, *b.Answer
	x.By, y.By, x.GRPC, y.GRPC = ident.Name{}, ident.Name{}, nil, nil
	return x == y
}
