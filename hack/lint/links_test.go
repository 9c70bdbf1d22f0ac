package lint

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLinksOfTheRepository: every relative link and every file that a document names exists.
func TestLinksOfTheRepository(t *testing.T) {
	root := filepath.Join("..", "..")
	var sources []*source
	documents := 0
	walkRepository(t, root, func(path string) bool {
		switch filepath.Ext(path) {
		case ".md", ".go", ".sh", ".proto", ".yaml", ".tpl", ".txt":
			return true
		}
		return false
	}, func(path string, text []byte) {
		if filepath.Ext(path) == ".md" {
			documents++
		}
		sources = append(sources, &source{path: filepath.ToSlash(path), text: text})
	})
	if documents < 10 {
		t.Fatalf("found %d documents only", documents)
	}
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(root, filepath.FromSlash(name)))
		return err == nil
	}
	for _, c := range checkLinks(sources, exists) {
		t.Error(c)
	}
}

func TestLinks(t *testing.T) {
	files := map[string]string{
		"docs/a.md": "# Top\n\n## It's here, `x`\n\n[b](design/b.md#the-end) [b](design/b.md#gone) [c](c.md) [me](#top)\n" +
			"[net](https://example.com/x) `pkg/there/a.go` `pkg/gone.go` `pkg/<name>/x`\n",
		"docs/design/b.md":  "# The end\n\n[a](../a.md#its-here-x) [up](../../pkg/there)\n",
		"pkg/there/a.go":    "// docs/a.md has more, docs/gone.md has not.\npackage there\n",
		"pkg/there/b.proto": "// `pkg/gone.go` is for documents only.\n",
	}
	var sources []*source
	for name, text := range files {
		sources = append(sources, &source{path: name, text: []byte(text)})
	}
	got := checkLinks(sources, func(name string) bool { return files[name] != "" || name == "pkg/there" })
	slices.Sort(got)
	want := []string{
		"docs/a.md:5: link to c.md: there is no docs/c.md",
		"docs/a.md:5: link to design/b.md#gone: docs/design/b.md has no such heading",
		"docs/a.md:6: pkg/gone.go does not exist",
		"pkg/there/a.go:1: docs/gone.md does not exist",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
