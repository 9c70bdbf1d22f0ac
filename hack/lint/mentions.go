package lint

import (
	"fmt"
	"regexp"
	"sort"
	"strings"
)

// mentions are names that are declared in code and listed in a document. Both have to have the same ones.
var mentions = []struct {
	what, code, document string
	declared, listed     *regexp.Regexp
}{
	{"reason", "pkg/driver/", "docs/health.md",
		regexp.MustCompile(`(?m)^\s*Reason\w+\s*=\s*"(\w+)"`), regexp.MustCompile("(?m)^\\| `([A-Z]\\w+)` \\|")},
	{"fault", "internal/bug/", "docs/design/guarantees.md",
		regexp.MustCompile(`(?m)^\s*\w+\s+Name\s*=\s*"([\w-]+)"`), regexp.MustCompile("`([a-z]+(?:-[a-z]+)+)`")},
}

// checkMentions complains about names that a document does not list, and about listed ones that the code does not have.
func checkMentions(sources []*source) (complaints []string) {
	for _, m := range mentions {
		declared, listed := map[string]bool{}, map[string]bool{}
		for _, s := range sources {
			if s.path == m.document {
				collect(listed, m.listed, s)
			}
			if strings.HasPrefix(s.path, m.code) && s.file != nil && !s.isTest() {
				collect(declared, m.declared, s)
			}
		}
		for name := range declared {
			if !listed[name] {
				complaints = append(complaints, fmt.Sprintf("%s:1: the %s %s is missing", m.document, m.what, name))
			}
		}
		for name := range listed {
			if !declared[name] {
				complaints = append(complaints, fmt.Sprintf("%s:1: there is no %s %s", m.document, m.what, name))
			}
		}
	}
	sort.Strings(complaints)
	return complaints
}

func collect(names map[string]bool, pattern *regexp.Regexp, s *source) {
	for _, found := range pattern.FindAllSubmatch(s.text, -1) {
		names[string(found[1])] = true
	}
}
