package config_test

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/malha-mesh/malha/internal/config"
	"github.com/malha-mesh/malha/internal/config/manifest"
	"github.com/malha-mesh/malha/internal/golden"
	"github.com/malha-mesh/malha/internal/ident"
	"github.com/malha-mesh/malha/internal/model"
)

// TestGolden translates the files of each archive; the model and every diagnostic must be as the archive says.
func TestGolden(t *testing.T) {
	golden.Run(t, "testdata", func(t *testing.T, in *golden.Archive) map[string][]byte {
		var objs []config.Object
		var report manifest.Report
		for _, f := range in.Files {
			if strings.HasPrefix(f.Name, golden.Want) {
				continue
			}
			found, ds := config.Parse(f.Name, f.Data)
			objs = append(objs, found...)
			report.Add(ds...)
		}
		cfg, ds := config.Translate(objs)
		report.Add(ds...)
		out := map[string][]byte{}
		if text := dump(cfg); text != "" {
			out["model"] = []byte(text)
		}
		if text := lines(report.Diagnostics()); text != "" {
			out["diagnostics"] = []byte(text)
		}
		return out
	})
}

func lines(ds []model.Diagnostic) string {
	var b strings.Builder
	for _, d := range ds {
		b.WriteString(d.String() + "\n")
	}
	return b.String()
}

// dump writes a configuration for people to read: what is not set is left out.
func dump(v any) string {
	var b strings.Builder
	dumpValue(&b, reflect.ValueOf(v), "")
	return strings.TrimPrefix(b.String(), "\n")
}

func dumpValue(b *strings.Builder, v reflect.Value, indent string) {
	switch x := v.Interface().(type) {
	case ident.Origin:
		fmt.Fprintf(b, " %s", x)
		return
	case ident.Name:
		fmt.Fprintf(b, " %s", x)
		return
	case encoding.TextMarshaler:
		if v.Kind() != reflect.Pointer {
			text, _ := x.MarshalText() // those of the model cannot fail
			fmt.Fprintf(b, " %s", text)
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.Elem().IsZero() {
			b.WriteString(" (zero)")
		}
		dumpValue(b, v.Elem(), indent)
	case reflect.Struct:
		if s, ok := v.Interface().(fmt.Stringer); ok {
			fmt.Fprintf(b, " %s", s)
			return
		}
		for f := range v.Type().Fields() {
			field := v.FieldByIndex(f.Index)
			if field.IsZero() {
				continue
			}
			if f.Anonymous {
				dumpValue(b, field, indent)
				continue
			}
			fmt.Fprintf(b, "\n%s%s:", indent, f.Name)
			dumpValue(b, field, indent+"  ")
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			fmt.Fprintf(b, " %q", v.Bytes())
			return
		}
		for i := range v.Len() {
			if v.Index(i).Kind() == reflect.String {
				fmt.Fprintf(b, " %q", v.Index(i).String())
				continue
			}
			fmt.Fprintf(b, "\n%s-", indent)
			dumpValue(b, v.Index(i), indent+"  ")
		}
	case reflect.Map:
		keys := map[string]reflect.Value{}
		for k, e := range v.Seq2() {
			keys[fmt.Sprint(k)] = e
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			fmt.Fprintf(b, "\n%s%s:", indent, k)
			if keys[k].Kind() == reflect.Pointer && keys[k].IsNil() {
				b.WriteString(" (nil)")
				continue
			}
			dumpValue(b, keys[k], indent+"  ")
		}
	case reflect.String:
		fmt.Fprintf(b, " %s", v.String())
	default:
		fmt.Fprintf(b, " %v", v.Interface())
	}
}
