package recordfile

import (
	"errors"
	"slices"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

type thing struct {
	Name string `json:"name"`
	N    int    `json:"n"`
}

// What is written is read; a change of any one byte, another kind and a newer version are found out.
func TestRecordFile(t *testing.T) {
	fsys := vfs.NewMem()
	if err := fsys.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	const path = "/d/thing.json"
	want := thing{"a", 7}
	if err := Write(fsys, path, "thing", &want); err != nil {
		t.Fatal(err)
	}
	var got thing
	if err := Read(fsys, path, "thing", &got); err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	var corrupt *CorruptError
	if err := Read(fsys, path, "other", &got); !errors.As(err, &corrupt) {
		t.Errorf("another kind: %v", err)
	}
	data, err := vfs.ReadFile(fsys, path, MaxBytes)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		changed := slices.Clone(data)
		changed[i] ^= 1
		err := Decode(path, "thing", changed, &got)
		var newer *NewerVersionError
		if !errors.As(err, &corrupt) && !errors.As(err, &newer) {
			t.Errorf("byte %d, %q for %q: %v", i, changed[i], data[i], err)
		}
	}
	two := errors.Join(&CorruptError{Path: "a"}, &CorruptError{Path: "b"})
	if !OnlyCorrupt(two) || OnlyCorrupt(errors.Join(two, errors.New("no space"))) {
		t.Error("OnlyCorrupt does not tell damage from other errors")
	}
}
