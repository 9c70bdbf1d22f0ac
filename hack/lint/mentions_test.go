package lint

import (
	"slices"
	"testing"
)

func TestMentions(t *testing.T) {
	var sources []*source
	for name, text := range map[string]string{
		"pkg/driver/a.go":           "package driver\n\nconst (\n\tReasonGone = \"Gone\"\n\tReasonFull = \"Full\"\n)\n",
		"pkg/driver/a_test.go":      "package driver\n\nconst ReasonOfTest = \"OfTest\"\n",
		"docs/health.md":            "| `Gone` | x |\n| `Lost` | x |\n`Prose`\n",
		"internal/bug/bug.go":       "package bug\n\nconst (\n\tSwap Name = \"swap-it\"\n\tSkip Name = \"skip-it\"\n)\n",
		"docs/design/guarantees.md": "Faults: `swap-it`, `stale-one`, `single`.\n",
	} {
		s, err := parse(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, s)
	}
	want := []string{
		"docs/design/guarantees.md:1: the fault skip-it is missing",
		"docs/design/guarantees.md:1: there is no fault stale-one",
		"docs/health.md:1: the reason Full is missing",
		"docs/health.md:1: there is no reason Lost",
	}
	if got := checkMentions(sources); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
