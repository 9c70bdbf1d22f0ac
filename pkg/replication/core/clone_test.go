package core

import (
	"reflect"
	"testing"
)

// TestClone: whatever is changed in a clone, through whatever slice or pointer, its origin stays as it was.
func TestClone(t *testing.T) {
	fill := func() *Group {
		g := &Group{}
		populate(reflect.ValueOf(&g.Meta).Elem(), 1)
		return g
	}
	g := fill()
	c := g.Clone()
	if !reflect.DeepEqual(g, c) {
		t.Fatal("a clone differs")
	}
	populate(reflect.ValueOf(&c.Meta).Elem(), 2)
	if !reflect.DeepEqual(g, fill()) {
		t.Errorf("a change of the clone changed its origin: %+v", g.Meta)
	}
}

// populate gives every field a value of its own; slices and pointers that are there are written through.
func populate(v reflect.Value, n int64) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		populate(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			populate(v.Field(i), n)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 { // JSON, which is replaced and never written into
			v.SetBytes([]byte{byte(n)})
			return
		}
		if v.Len() == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		}
		populate(v.Index(0), n)
	case reflect.String:
		v.SetString(string(rune('a' + n)))
	case reflect.Bool:
		v.SetBool(n%2 == 1)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(n)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(n))
	case reflect.Float64:
		v.SetFloat(float64(n))
	default:
		panic(v.Type().String())
	}
}
