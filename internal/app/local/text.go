package local

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// age returns how long something ran, as people say it.
func age(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return d.Round(100 * time.Millisecond).String()
}

func sortedPorts(m map[int]string) []int { return slices.Sorted(maps.Keys(m)) }
