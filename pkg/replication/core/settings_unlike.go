package core

import (
	"fmt"
	"reflect"
	"strings"
)

// Unlike lists the settings that differ from those of w, for a person: the names as they are stored, and both values.
// It is empty if none does.
func (s Settings) Unlike(w Settings) string {
	var differ []string
	have, want := reflect.ValueOf(s), reflect.ValueOf(w)
	for i := range have.NumField() {
		a, b := have.Field(i).Interface(), want.Field(i).Interface()
		if a == b {
			continue
		}
		name, _, _ := strings.Cut(have.Type().Field(i).Tag.Get("json"), ",")
		if shard, ok := a.(Shard); ok {
			differ = append(differ, fmt.Sprintf("%s is %+v, not %+v", name, shard, b))
			continue
		}
		differ = append(differ, fmt.Sprintf("%s is %q, not %q", name, fmt.Sprint(a), fmt.Sprint(b)))
	}
	return strings.Join(differ, ", ")
}
