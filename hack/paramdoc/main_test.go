package main

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/driver"
)

func TestWrite(t *testing.T) {
	var b strings.Builder
	err := write(&b, []driver.ParameterSpec{
		{Key: "x/flag", Type: driver.TypeBool, Default: "false", Doc: "Flag it."},
		{Key: "x/choice", Type: driver.TypeEnum, Values: []string{"one", "two"}, Default: "two", Doc: "Choose."},
		{Key: "x/name", Type: driver.TypeName, Doc: "Name it."},
		{Key: "x/size", Type: driver.TypeQuantity, Default: "1Gi", Doc: "Size it."},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := head + "| `x/flag` | `true`, `false` | `false` |\n" +
		"| `x/choice` | `one`, `two` | `two` |\n" +
		"| `x/name` | name | none |\n" +
		"| `x/size` | quantity | `1Gi` |\n" + tail +
		"\n## x/flag\n\nFlag it.\n\n## x/choice\n\nChoose.\n\n## x/name\n\nName it.\n\n## x/size\n\nSize it.\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
