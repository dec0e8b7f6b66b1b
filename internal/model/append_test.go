package model_test

import (
	"reflect"
	"testing"

	"github.com/malha-mesh/malha/internal/model"
)

// TestAppendTakesEverything finds a list of Config that Append forgets.
func TestAppendTakesEverything(t *testing.T) {
	var from, to model.Config
	v := reflect.ValueOf(&from).Elem()
	for i := range v.NumField() {
		v.Field(i).Set(reflect.MakeSlice(v.Field(i).Type(), 1, 1))
	}
	to.Append(&from)
	to.Append(&from)
	got := reflect.ValueOf(to)
	for i := range got.NumField() {
		if got.Field(i).Len() != 2 {
			t.Errorf("%s has %d elements, want 2", got.Type().Field(i).Name, got.Field(i).Len())
		}
	}
}
