package explain

import "github.com/malha-mesh/malha/internal/ident"

// outcomes adds up how a walk may end.
func (w *Walk) outcomes(grpc bool) []Outcome {
	var out []Outcome
	left := 1.0
	answered := w.Answer != nil && (w.Answer.Detail == "cors_preflight" || w.Answer.Flags == "RL" || w.Answer.Detail == "rate_limit_not_found")
	if w.Action != nil && w.Action.Fault != nil && !answered { // those answers come before faults
		f := w.Action.Fault
		if (f.AbortStatus != 0 || f.AbortGRPC != nil) && f.AbortPercent > 0 {
			share := min(f.AbortPercent/100, 1)
			a := &Answer{By: w.From, Status: f.AbortStatus, GRPC: f.AbortGRPC, Flags: "FI", Detail: "fault_filter_abort", Text: "fault filter abort", Origin: w.Action.Origin}
			switch {
			case grpc && f.AbortGRPC != nil:
				a.Status = 200
			case grpc:
				code := grpcFromHTTP(f.AbortStatus)
				a.Status, a.GRPC = 200, &code
			case f.AbortGRPC != nil: // who does not speak gRPC is told in HTTP
				a.Status, a.GRPC = httpFromGRPC(*f.AbortGRPC), nil
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
			if e.Share == 0 {
				continue // it is for when nearer ones fail
			}
			o := Outcome{Share: left * b.Share * e.Share, Workload: e.Workload, Version: e.Version, Subset: b.Subset, Cluster: b.Cluster, Locality: e.Locality}
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
	if a.Workload != b.Workload || a.Version != b.Version || a.Subset != b.Subset || a.Cluster != b.Cluster || a.Locality != b.Locality || a.External != b.External {
		return false
	}
	if a.Answer == nil || b.Answer == nil {
		return a.Answer == b.Answer
	}
	x, y := *a.Answer, *b.Answer
	x.By, y.By, x.GRPC, y.GRPC = ident.Name{}, ident.Name{}, nil, nil
	return x == y
}

// httpFromGRPC is the mapping of internal/proxy/stack (Envoy Grpc::Utility::grpcToHttpStatus).
func httpFromGRPC(code int) int {
	switch code {
	case 0:
		return 200
	case 1:
		return 499
	case 3, 9, 11:
		return 400
	case 4:
		return 504
	case 5:
		return 404
	case 6, 10:
		return 409
	case 7:
		return 403
	case 8:
		return 429
	case 12:
		return 501
	case 14:
		return 503
	case 16:
		return 401
	}
	return 500
}
