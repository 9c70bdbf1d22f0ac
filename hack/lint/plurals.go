package lint

import (
	"go/ast"
	"go/token"
	"regexp"
	"strconv"
	"strings"
)

// counted finds a number with a plural noun behind it, and up to one word between: "%d volumes", "%d lost orders".
var counted = regexp.MustCompile(`%d ([a-z]+s)\b|%d ([a-z]+) ([a-z]+s)\b`)

// notNouns are words that end in s and may stand behind a number, and words behind which another statement begins.
var notNouns = func() map[string]bool {
	set := map[string]bool{}
	for word := range strings.FieldsSeq("is was has does as its this ms " +
		"afterwards comes ends lies says " +
		"and at but in of or than that to which with") {
		set[word] = true
	}
	return set
}()

// allowedPlurals are the exceptions: path prefix, with the reason.
var allowedPlurals = map[string]string{
	"pkg/blockdev/shim/":         "sizes of the kernel's protocol, which are never 1, for developers",
	"pkg/blockdev/":              "sizes of images and of records in files",
	"pkg/recordfile/":            "sizes of files",
	"pkg/vfs/":                   "sizes of files",
	"pkg/untrusted/":             "limits of texts from outside",
	"pkg/replication/journal/":   "sizes of records in files",
	"pkg/replication/changemap/": "sizes of records in files",
	"pkg/replication/overlay/":   "ranges of volumes, in panics",
	"pkg/replication/epoch/":     "limits of the protocol between nodes",
	"pkg/replication/link/":      "limits of the protocol between sites",
	"pkg/shards/":                "limits of the protocol between nodes",
	"internal/testbrowser/":      "a program of tests",
	"internal/bug/inject/":       "a program of tests",
}

// checkPlurals: "%d volumes" prints "1 volumes". The rule is for what users and operators read.
func checkPlurals(s *source) (complaints []string) {
	if s.file == nil || s.isTest() || s.isGenerated() {
		return nil
	}
	product := false
	for _, dir := range []string{"cmd/", "internal/", "pkg/"} {
		product = product || strings.HasPrefix(s.path, dir)
	}
	for dir := range allowedPlurals {
		product = product && !strings.HasPrefix(s.path, dir)
	}
	if !product {
		return nil
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		text, ok := constantText(e)
		if !ok {
			return true
		}
		for _, found := range counted.FindAllStringSubmatch(text, -1) {
			if notNouns[found[1]] || notNouns[found[2]] || notNouns[found[3]] {
				continue
			}
			complaints = append(complaints, s.complain(n.Pos(), "%q prints \"1 ...s\": use words.Count", found[0]))
		}
		return false // the parts of a text that is put together were looked at with the whole
	})
	return complaints
}

// constantText returns the value of a string literal, or of several with + between them.
func constantText(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, err := strconv.Unquote(e.Value)
			return text, err == nil
		}
	case *ast.ParenExpr:
		return constantText(e.X)
	case *ast.BinaryExpr:
		left, isText := constantText(e.X)
		right, also := constantText(e.Y)
		return left + right, e.Op == token.ADD && isText && also
	}
	return "", false
}
