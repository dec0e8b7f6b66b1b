package ctl

import (
	"unicode"

	"golang.org/x/text/width"
)

// seen returns how many columns of a terminal a text takes: two for what is wide by Unicode Standard Annex 11 (East Asian letters,
// emoji), none for what is put over the letter before it.
func seen(text string) int {
	n := 0
	for _, r := range text {
		switch {
		case r < 0x300: // most
			n++
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case isWide(r):
			n += 2
		default:
			n++
		}
	}
	return n
}

func isWide(r rune) bool {
	k := width.LookupRune(r).Kind()
	return k == width.EastAsianWide || k == width.EastAsianFullwidth
}
