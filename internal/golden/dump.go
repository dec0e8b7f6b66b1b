package golden

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Dump writes a value for people to read: a field on each line, what is not set left out. A struct that says what it is
// (fmt.Stringer, encoding.TextMarshaler) stands on one line.
func Dump(v any) string {
	var b strings.Builder
	dump(&b, reflect.ValueOf(v), "")
	return strings.TrimPrefix(b.String(), "\n")
}

func dump(b *strings.Builder, v reflect.Value, indent string) {
	if v.Kind() != reflect.Pointer && v.CanInterface() {
		switch x := v.Interface().(type) {
		case encoding.TextMarshaler:
			text, err := x.MarshalText()
			if err != nil {
				text = []byte("error: " + err.Error())
			}
			fmt.Fprintf(b, " %s", text)
			return
		case fmt.Stringer:
			if v.Kind() == reflect.Struct {
				fmt.Fprintf(b, " %s", x)
				return
			}
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.Elem().IsZero() {
			b.WriteString(" (zero)")
		}
		dump(b, v.Elem(), indent)
	case reflect.Struct:
		for f := range v.Type().Fields() {
			field := v.FieldByIndex(f.Index)
			if field.IsZero() {
				continue
			}
			if f.Anonymous {
				dump(b, field, indent)
				continue
			}
			fmt.Fprintf(b, "\n%s%s:", indent, f.Name)
			dump(b, field, indent+"  ")
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
			dump(b, v.Index(i), indent+"  ")
		}
	case reflect.Map:
		dumpMap(b, v, indent)
	case reflect.String:
		fmt.Fprintf(b, " %s", v.String())
	default:
		fmt.Fprintf(b, " %v", v.Interface())
	}
}

func dumpMap(b *strings.Builder, v reflect.Value, indent string) {
	values := map[string]reflect.Value{}
	for k, e := range v.Seq2() {
		values[fmt.Sprint(k)] = e
	}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(b, "\n%s%s:", indent, k)
		if values[k].Kind() == reflect.Pointer && values[k].IsNil() {
			b.WriteString(" (nil)")
			continue
		}
		dump(b, values[k], indent+"  ")
	}
}
