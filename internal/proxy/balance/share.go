package balance

// overprovisioning is how much of what a group has may be missing before others take a share of its traffic, in percent
// (Envoy overprovisioning_factor).
const overprovisioning = 140

// divide decides what share of the traffic each group gets, and where health is ignored.
func divide(all []GroupStatus, o *Options) {
	switch {
	case len(all) == 0:
	case o.Shares != nil:
		divideShares(all, o)
	case len(all) == 1:
		all[0].Panic = all[0].few(o.MinHealthy)
		all[0].Percent = 100
	default:
		divideLevels(all, o)
	}
}

// few reports whether so few are healthy that health is to be ignored.
func (s *GroupStatus) few(minHealthy uint32) bool {
	return uint64(s.Healthy)*100 < uint64(minHealthy)*uint64(s.Members)
}

// able returns how much of its traffic a group can carry, in percent.
func (s *GroupStatus) able() uint32 {
	return min(100, uint32(uint64(s.Healthy)*overprovisioning/uint64(s.Members)))
}

// divideLevels is Envoy's priority levels ("Priority levels", "Degraded endpoints", "Panic threshold"): a level that is able
// to carry everything gets it; what it is not able to carry goes to the next. Only when all levels together are not able to,
// those panic that have too few.
func divideLevels(all []GroupStatus, o *Options) {
	var total uint32
	best := -1
	for i := range all {
		total += all[i].able()
		if best < 0 && all[i].Healthy > 0 {
			best = i
		}
	}
	if o.Strict {
		if best < 0 {
			best = 0
		}
		all[best].Panic = all[best].few(o.MinHealthy)
		all[best].Percent = 100
		return
	}
	if total < 100 {
		everywhere := true
		for i := range all {
			all[i].Panic = all[i].few(o.MinHealthy)
			everywhere = everywhere && all[i].Panic
		}
		if everywhere {
			spread(all, func(s *GroupStatus) uint64 { return uint64(s.Members) })
			return
		}
	}
	left := uint32(100)
	for i := range all {
		if total == 0 {
			break
		}
		n := all[i].able() * 100 / min(total, 100)
		all[i].Percent = min(n, left)
		left -= all[i].Percent
	}
	if best >= 0 {
		all[best].Percent += left // rounding
	}
}

// divideShares is Envoy's locality weights ("Locality weighted load balancing"): a group below its strength passes a part of
// its share on to all others.
func divideShares(all []GroupStatus, o *Options) {
	share := func(s *GroupStatus) uint64 {
		if s.Group >= len(o.Shares) {
			return 0
		}
		return uint64(o.Shares[s.Group])
	}
	healthy := false
	for i := range all {
		healthy = healthy || all[i].able() > 0 && share(&all[i]) > 0
	}
	if !healthy {
		for i := range all {
			all[i].Panic = all[i].few(o.MinHealthy)
		}
		spread(all, share)
		return
	}
	for i := range all {
		// One that has too few and panics carries its own share: it is as able as it gets.
		all[i].Panic = all[i].few(o.MinHealthy)
	}
	spread(all, func(s *GroupStatus) uint64 {
		if s.Panic {
			return share(s) * 100
		}
		return share(s) * uint64(s.able())
	})
}

// spread gives out 100 percent in proportion to weights.
func spread(all []GroupStatus, weight func(*GroupStatus) uint64) {
	var total uint64
	for i := range all {
		total += weight(&all[i])
	}
	if total == 0 {
		return
	}
	left, largest := uint32(100), 0
	for i := range all {
		all[i].Percent = uint32(weight(&all[i]) * 100 / total)
		left -= all[i].Percent
		if weight(&all[i]) > weight(&all[largest]) {
			largest = i
		}
	}
	all[largest].Percent += left
}
