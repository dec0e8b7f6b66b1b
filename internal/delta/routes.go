package delta

import (
	"encoding/json"
	"slices"
	"strconv"

	"github.com/malha-mesh/malha/internal/plan"
)

// routes compares two lists of rules, of which the first that matches wins: rules with the same conditions are the same
// rule, and the longest common order of them stays where it is.
func (c *comparer) routes(host string, was, is []plan.Route) {
	old, now := c.keys(was), c.keys(is)
	kept := common(old, now)
	partner := make(map[int]int, len(old)) // index afterwards → before
	for _, k := range kept {
		partner[k[1]] = k[0]
	}
	used := map[int]bool{}
	for _, k := range kept {
		used[k[0]] = true
	}
	moved := map[int]int{}
	for j := range now {
		if _, ok := partner[j]; ok {
			continue
		}
		for i, k := range old {
			if k == now[j] && !used[i] {
				moved[j], used[i] = i, true
				break
			}
		}
	}
	for j := range is {
		if i, ok := partner[j]; ok {
			c.pieces("route", label(host, &is[j]), &was[i], &is[j], false)
			continue
		}
		if i, ok := moved[j]; ok {
			fields := append([]Field{{"place", strconv.Itoa(i), strconv.Itoa(j)}}, different(c.fields(&was[i]), c.fields(&is[j]))...)
			c.add(Change{Kind: "route", Name: label(host, &is[j]), Action: Moved, Fields: fields, Origin: is[j].Origin})
			continue
		}
		c.pieces("route", label(host, &is[j]), nil, &is[j], true)
	}
	for i := range was {
		if !used[i] {
			c.pieces("route", label(host, &was[i]), &was[i], nil, true)
		}
	}
}

// label names a rule without its place, which differs from proxy to proxy.
func label(host string, r *plan.Route) string { return host + " " + r.Name }

// keys returns the conditions of each rule in a form that can be compared.
func (c *comparer) keys(rs []plan.Route) []string {
	out := make([]string, len(rs))
	for i := range rs {
		b, err := json.Marshal(rs[i].Match)
		if err != nil && c.err == nil {
			c.err = err
		}
		out[i] = string(b)
	}
	return out
}

// common returns the index pairs of a longest common subsequence. What the lists begin and end with in common is taken
// first, so that the table is as small as the change.
func common(a, b []string) [][2]int {
	var head, tail [][2]int
	lo := 0
	for lo < len(a) && lo < len(b) && a[lo] == b[lo] {
		head = append(head, [2]int{lo, lo})
		lo++
	}
	x, y := len(a), len(b)
	for x > lo && y > lo && a[x-1] == b[y-1] {
		x, y = x-1, y-1
		tail = append(tail, [2]int{x, y})
	}
	slices.Reverse(tail)
	rows := make([][]int, x-lo+1)
	for i := range rows {
		rows[i] = make([]int, y-lo+1)
	}
	for i := x - lo - 1; i >= 0; i-- {
		for j := y - lo - 1; j >= 0; j-- {
			if a[lo+i] == b[lo+j] {
				rows[i][j] = rows[i+1][j+1] + 1
			} else {
				rows[i][j] = max(rows[i+1][j], rows[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < x-lo && j < y-lo; {
		switch {
		case a[lo+i] == b[lo+j]:
			head = append(head, [2]int{lo + i, lo + j})
			i, j = i+1, j+1
		case rows[i+1][j] >= rows[i][j+1]:
			i++
		default:
			j++
		}
	}
	return append(head, tail...)
}
