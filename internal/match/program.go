package match

import "regexp/syntax"

// MaxProgram is the most instructions that a regular expression may compile to. A short one can be large: x{1000} is
// 1000 of them, and each proxy keeps the program. (Istio's own limit for Envoy's RE2 programs is twice that.)
const MaxProgram = 16384

// programSize returns about how many instructions an expression compiles to, without compiling it; 0 for one that
// cannot be.
func programSize(expression string) int {
	re, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return 0
	}
	return size(re)
}

// size counts one instruction for each character, class, split and capture. It stops counting soon above the limit.
func size(re *syntax.Regexp) int {
	n := 1
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCapture:
		n = 2
	}
	for _, sub := range re.Sub {
		if n += size(sub); n > 64*MaxProgram {
			break
		}
	}
	if re.Op == syntax.OpRepeat {
		times := re.Max
		if times < 0 {
			times = re.Min + 1
		}
		n *= max(1, times)
	}
	return min(n, 64*MaxProgram)
}
