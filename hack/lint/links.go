package lint

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

var (
	// markdownLink is [text](target); images and reference links are not used here.
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	// namedPath is a file or directory of the repository in backticks. A name with a wildcard or a placeholder is none.
	namedPath = regexp.MustCompile("`((?:cmd|deploy|docs|hack|internal|pkg|test)/[A-Za-z0-9_./-]+)`")
	// namedDocument is a document that a comment or a message names.
	namedDocument = regexp.MustCompile(`\bdocs/[a-z/-]+\.md\b`)
	heading       = regexp.MustCompile(`(?m)^#{1,6} +(.+)$`)
	notInAnchor   = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// checkLinks complains about relative links whose file or heading does not exist, and about named files that do not
// exist. It looks for names of documents in all sources, and for names of other files in documents. exists takes a path
// relative to the repository.
func checkLinks(sources []*source, exists func(string) bool) (complaints []string) {
	anchors := map[string]map[string]bool{}
	for _, s := range sources {
		if path.Ext(s.path) == ".md" {
			anchors[s.path] = anchorsOf(string(s.text))
		}
	}
	for _, s := range sources {
		// hack/lint names files that do not exist; the other documents of hack become parts of those in docs.
		if strings.HasPrefix(s.path, "hack/") && (path.Ext(s.path) == ".md" || strings.HasPrefix(s.path, "hack/lint/")) {
			continue
		}
		for i, line := range strings.Split(string(s.text), "\n") {
			complain := func(format string, args ...any) {
				complaints = append(complaints, fmt.Sprintf("%s:%d: %s", s.path, i+1, fmt.Sprintf(format, args...)))
			}
			for _, name := range namedDocument.FindAllString(line, -1) {
				if !exists(name) {
					complain("%s does not exist", name)
				}
			}
			if anchors[s.path] == nil {
				continue
			}
			for _, m := range namedPath.FindAllStringSubmatch(line, -1) {
				if !exists(m[1]) {
					complain("%s does not exist", m[1])
				}
			}
			for _, m := range markdownLink.FindAllStringSubmatch(line, -1) {
				if problem := linkProblem(s.path, m[1], anchors, exists); problem != "" {
					complain("link to %s: %s", m[1], problem)
				}
			}
		}
	}
	return complaints
}

// linkProblem returns what is wrong with a link in a document. It is empty for a good link, and for a link that leaves
// the repository.
func linkProblem(document, target string, anchors map[string]map[string]bool, exists func(string) bool) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return ""
	}
	name, anchor, _ := strings.Cut(target, "#")
	file := document
	if name != "" {
		file = path.Join(path.Dir(document), name)
	}
	switch {
	case !exists(file):
		return "there is no " + file
	case anchor != "" && !anchors[file][anchor]:
		return file + " has no such heading"
	}
	return ""
}

// anchorsOf returns the anchors that a forge gives to the headings of a document: lower case, spaces as hyphens,
// without punctuation.
func anchorsOf(text string) map[string]bool {
	anchors := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		anchors[strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return anchors
}
