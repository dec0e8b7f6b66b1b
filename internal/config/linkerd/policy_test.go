package linkerd

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestWithout compares what is left of a network with its definition: every address of it that is not cut out, once.
func TestWithout(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		random := func(least int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(2)), byte(rng.IntN(256))}), least+rng.IntN(33-least)).Masked()
		}
		from := random(22)
		cuts := []netip.Prefix{random(20), random(24), random(30)}
		left := []netip.Prefix{from}
		for _, c := range cuts {
			left = without(left, c)
		}
		for range 50 {
			a := netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(2)), byte(rng.IntN(256))})
			want := 0
			if from.Contains(a) && !cuts[0].Contains(a) && !cuts[1].Contains(a) && !cuts[2].Contains(a) {
				want = 1
			}
			got := 0
			for _, p := range left {
				if p.Contains(a) {
					got++
				}
			}
			if got != want {
				t.Fatalf("%s without %v is %v: %s stands in %d of them, want %d", from, cuts, left, a, got, want)
			}
		}
	}
	six := without([]netip.Prefix{netip.MustParsePrefix("fd00::/8")}, netip.MustParsePrefix("fd80::/9"))
	if len(six) != 1 || six[0] != netip.MustParsePrefix("fd00::/9") {
		t.Errorf("IPv6: %v", six)
	}
}

func TestParsePorts(t *testing.T) {
	for in, bad := range map[string]string{
		"": "", "25": "", " 25 , 8000-8010,db": "", "0": "0", "65536": "65536", "5-4": "5-4", "5-": "5-", "A_B": "A_B", "80,-1": "-1",
	} {
		if _, got := parsePorts(in); got != bad {
			t.Errorf("%q: %q is bad, want %q", in, got, bad)
		}
	}
	set, _ := parsePorts("25,8000-8010,db")
	for _, c := range []struct {
		port int
		name string
		want bool
	}{{25, "", true}, {26, "", false}, {8000, "x", true}, {8010, "", true}, {8011, "", false}, {1, "db", true}, {1, "", false}} {
		if got := set.has(c.port, c.name); got != c.want {
			t.Errorf("%d %q: %v", c.port, c.name, got)
		}
	}
}
