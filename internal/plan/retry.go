package plan

// Names returns the conditions of on with the words of x-envoy-retry-on, in one order. RetryStatusCodes has none: the
// codes are.
func (on RetryOn) Names() []string {
	var out []string
	for i, name := range [...]string{
		"connect-failure", "refused-stream", "reset", "5xx", "gateway-error", "retriable-4xx", "", "cancelled", "deadline-exceeded",
		"internal", "resource-exhausted", "unavailable", "failure-class",
	} {
		if on&(1<<i) != 0 && name != "" {
			out = append(out, name)
		}
	}
	return out
}
