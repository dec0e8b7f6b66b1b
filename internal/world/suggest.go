package world

import (
	"slices"
	"strings"

	"github.com/malha-mesh/malha/internal/ident"
)

// suggest returns a hint for a host that is no service: the service that was probably meant, or what to do.
func (c *checker) suggest(host string) string {
	name, rest, _ := strings.Cut(host, ".")
	namespace, _, _ := strings.Cut(rest, ".")
	if s, ok := c.Service(ident.ServiceHost(ident.Name{Namespace: namespace, Name: name})); ok {
		return "a name with a dot is taken as it stands; did you mean " + s.Host + "?"
	}
	var same, near []string
	for _, s := range c.services {
		switch {
		case s.Name.Name == name:
			same = append(same, s.Host) // the right name in another namespace
		case s.Name.Namespace == namespace:
			near = append(near, s.Name.Name)
		}
	}
	if len(same) > 0 {
		return didYouMean(same[0])
	}
	if n := nearest(name, near); n != "" {
		return didYouMean(n)
	}
	return "create the Service, or correct the host"
}

func didYouMean(word string) string {
	if word == "" {
		return ""
	}
	return "did you mean " + word + "?"
}

// nearest returns the candidate that word is most likely a misspelling of: at most one letter in three, and three, apart.
func nearest(word string, candidates []string) string {
	best, least := "", min(3, 1+len(word)/3)+1
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if d := distance(word, c); d < least {
			best, least = c, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace to turn a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
