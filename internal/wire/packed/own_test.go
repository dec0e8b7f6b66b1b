package packed_test

import (
	"testing"
	"unsafe"

	"github.com/malha-mesh/malha/internal/wire/packed"
)

func TestOwn(t *testing.T) {
	whole := string([]byte("one two"))
	a, b, none := whole[:3], whole[4:], whole[3:3]
	packed.Own(&a, &b, &none)
	if a != "one" || b != "two" || none != "" {
		t.Fatalf("%q, %q and %q", a, b, none)
	}
	if from := uintptr(unsafe.Pointer(unsafe.StringData(whole))); uintptr(unsafe.Pointer(unsafe.StringData(a)))-from < uintptr(len(whole)) {
		t.Error("it is still a part of the whole")
	}
}
