package model

// HasLabels reports whether every label of want stands in labels. An empty want always does; what an empty selector
// means differs from kind to kind, and the caller says so.
func HasLabels(labels, want map[string]string) bool {
	for k, v := range want {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
