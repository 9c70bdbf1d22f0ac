package inject

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOverlay(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"a/a.go": "package a\n\nfunc (t *T) F(x int) int {\n\tif x > 1 &&\n\t\tx < 3 " +
			"{\n\t\treturn 2\n\t}\n\treturn x\n}\n",
		"a/a_test.go":                  "package a\n\nfunc (t *T) F() {}\n",
		"internal/bug/faults/one.txt":  "# why\nin a (*T).F\n- x > 1 && x < 3\n+ x > 1\n",
		"internal/bug/faults/two.txt":  "in a (*T).F\n+ x++\n",
		"internal/bug/faults/more.txt": "in a\n+ package a\n+ \n+ type T int\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	path, err := Overlay(root, dir)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(list), filepath.Join(root, "a/a.go")) ||
		!strings.Contains(string(list), filepath.Join(root, "a/fault_more.go")) {
		t.Fatalf("%s, %v", list, err)
	}
	changed, err := filepath.Glob(filepath.Join(dir, "changed*.go"))
	if err != nil || len(changed) != 1 {
		t.Fatalf("%v, %v", changed, err)
	}
	text, err := os.ReadFile(changed[0])
	want := "package a; " + bugImport +
		"\n\nfunc (t *T) F(x int) int {\nx++\n\n\tif x > 1 {\n\t\treturn 2\n\t}\n\treturn x\n}\n"
	if err != nil || string(text) != want {
		t.Errorf("%q, %v; want %q", text, err, want)
	}

	for change, says := range map[string]string{
		"in a (*T).F\n- x > 5\n+ x\n":   "0 times",
		"in a (*T).F\n- x\n+ y\n":       "3 times",
		"in a (*T).Gone\n+ x++\n":       "0 times",
		"in a (*T).F\nx++\n":            "two.txt:2: want a line",
		"- without a place\n+ at all\n": "two.txt:1: want a line",
	} {
		if err := os.WriteFile(filepath.Join(root, "internal/bug/faults/two.txt"), []byte(change), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Overlay(root, t.TempDir()); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", change, err, says)
		}
	}
}

// TestFaultsFitTheSources says early which fault has to follow a change of the product. That it is still caught is
// shown by the tests of the guarantees.
func TestFaultsFitTheSources(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Overlay(root, t.TempDir()); err != nil {
		t.Error(err)
	}
}
