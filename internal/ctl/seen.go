package ctl

import "unicode"

// seen returns how many columns of a terminal a text takes: two for what East Asian typography makes wide, and emoji, none for what is
// put over the letter before it (Unicode Standard Annex 11, whose W and F are these scripts and blocks).
func seen(text string) int {
	n := 0
	for _, r := range text {
		switch {
		case r < 0x300: // most
			n++
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana, wide):
			n += 2
		default:
			n++
		}
	}
	return n
}

// wide is what is wide beside letters: punctuation and full-width forms, and emoji.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x3000, Hi: 0x303e, Stride: 1}, {Lo: 0xff01, Hi: 0xff60, Stride: 1}, {Lo: 0xffe0, Hi: 0xffe6, Stride: 1}},
	R32: []unicode.Range32{{Lo: 0x1f300, Hi: 0x1f64f, Stride: 1}, {Lo: 0x1f680, Hi: 0x1f6ff, Stride: 1}, {Lo: 0x1f900, Hi: 0x1f9ff, Stride: 1}},
}
