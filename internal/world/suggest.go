package world

import (
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
	if n := ident.Nearest(name, near); n != "" {
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
