// Package flags is the command line of malhad and malha-proxy: the standard library's flags, because of what those programs may
// link, with the help, the errors and the shell completion that people expect of a GNU program.
package flags

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/malha-mesh/malha/internal/ident"
)

const (
	helpWidth  = 100 // columns
	helpIndent = 8   // of what a flag means, below its name
)

// Parse reads args, without the program's name, into fs, whose name is the command as it is typed: "malha-proxy wait". Arguments
// that are no flags are an error. When help is asked for, about and the flags are written to out, and the error is flag.ErrHelp.
// Every other error says where help is.
func Parse(fs *flag.FlagSet, about string, args []string, out io.Writer) error {
	fs.SetOutput(io.Discard) // errors are returned, and help goes where it was asked for
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, werr := io.WriteString(out, Help(fs, about))
		return errors.Join(err, werr)
	case err != nil:
		return fmt.Errorf("%s; see %s --help", say(fs, err), fs.Name())
	case fs.NArg() > 0:
		return fmt.Errorf("unexpected argument %q; see %s --help", fs.Arg(0), fs.Name())
	}
	return nil
}

// say turns an error of the standard library into our words: flags as help writes them, and the one that was probably meant.
func say(fs *flag.FlagSet, err error) string {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		var names []string
		fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
		if near := ident.Nearest(name, names); near != "" {
			return fmt.Sprintf("unknown flag --%s (did you mean --%s?)", name, near)
		}
		return "unknown flag --" + name
	}
	for _, before := range []string{"needs an argument: ", "for flag ", "for "} {
		head, rest, ok := strings.Cut(text, before+"-")
		if !ok {
			continue
		}
		name, why, _ := strings.Cut(rest, ": ")
		if f := fs.Lookup(name); f != nil && why != "" {
			rest = name + ": " + Why(f, errors.New(why))
		}
		return head + strings.TrimSuffix(before, "flag ") + "--" + rest
	}
	return text
}

// Why says why a flag did not take a value, also where the standard library says only that it did not.
func Why(f *flag.Flag, err error) string {
	var v any
	if g, ok := f.Value.(flag.Getter); ok {
		v = g.Get()
	}
	switch v.(type) {
	case time.Duration:
		return "want a duration such as 500ms, 30s or 2h"
	case bool:
		return "want true or false"
	case int, int64, uint, uint64:
		return "want a whole number"
	case *slog.Level:
		return "want debug, info, warn or error"
	}
	return err.Error()
}

// zeros are the parts of a duration that nobody says: 24h0m0s is 24h.
var zeros = strings.NewReplacer("h0m0s", "h", "m0s", "m")

// Help returns about, and each flag with what it takes, what it means and its default.
func Help(fs *flag.FlagSet, about string) string {
	var b strings.Builder
	b.WriteString(about)
	fs.VisitAll(func(f *flag.Flag) {
		value, meaning := flag.UnquoteUsage(f)
		b.WriteString("  --" + f.Name)
		if value != "" {
			b.WriteString(" " + value)
		}
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "0s" {
			meaning += " (default " + zeros.Replace(d) + ")"
		}
		b.WriteByte('\n')
		fill(&b, meaning)
	})
	return b.String()
}

// fill writes text in lines of helpWidth, indented.
func fill(b *strings.Builder, text string) {
	column := 0
	for word := range strings.FieldsSeq(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case column == 0:
			b.WriteString(strings.Repeat(" ", helpIndent))
			column = helpIndent
		case column+1+n > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", helpIndent))
			column = helpIndent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	b.WriteByte('\n')
}
