package main

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

func TestWrite(t *testing.T) {
	var b strings.Builder
	err := write(&b, []parameter.Spec{
		{Key: "x/flag", Type: parameter.TypeBool, Default: "false", Doc: "Flag it."},
		{Key: "x/choice", Type: parameter.TypeEnum, Values: []string{"one", "two"}, Default: "two", Mutable: true,
			Doc: "Choose."},
		{Key: "x/name", Type: parameter.TypeName, Doc: "Name it."},
		{Key: "x/size", Type: parameter.TypeQuantity, Default: "1Gi", Doc: "Size it."},
	}, []parameter.Spec{
		{Key: "x/cold", Type: parameter.TypeBool, Default: "false", Doc: "Freeze it."},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := head + "| `x/flag` | `true`, `false` | `false` | no |\n" +
		"| `x/choice` | `one`, `two` | `two` | yes |\n" +
		"| `x/name` | name | none | no |\n" +
		"| `x/size` | quantity | `1Gi` | no |\n" + tail +
		"\n## x/flag\n\nFlag it.\n\n## x/choice\n\nChoose.\n\n## x/name\n\nName it.\n\n## x/size\n\nSize it.\n" +
		snapshotHead + "| `x/cold` | `true`, `false` | `false` |\n\n## x/cold\n\nFreeze it.\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
