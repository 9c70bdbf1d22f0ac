package lint

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

var (
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
	testNamed = regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`")
)

// checkNamedTests complains about tests that the design documents name and that there are not: a guarantee whose test
// is gone is none.
func checkNamedTests(sources []*source) (complaints []string) {
	known := map[string]bool{}
	for _, s := range sources {
		if s.isTest() {
			for _, m := range testFunc.FindAllSubmatch(s.text, -1) {
				known[string(m[1])] = true
			}
		}
	}
	for _, s := range sources {
		if filepath.Ext(s.path) != ".md" {
			continue
		}
		for i, line := range strings.Split(string(s.text), "\n") {
			for _, m := range testNamed.FindAllStringSubmatch(line, -1) {
				if !known[m[1]] {
					complaints = append(complaints, fmt.Sprintf("%s:%d: there is no test %s", s.path, i+1, m[1]))
				}
			}
		}
	}
	return complaints
}
