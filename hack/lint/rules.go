package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// maxLines is where a file stops being one concern.
const maxLines = 800

// source is one file of the repository.
type source struct {
	path string // slash-separated, relative to the repository
	text []byte
	fset *token.FileSet
	file *ast.File // nil for what is not Go
}

func (s *source) isTest() bool      { return strings.HasSuffix(s.path, "_test.go") }
func (s *source) isGenerated() bool { return s.file != nil && ast.IsGenerated(s.file) }

// complain formats a complaint as the go tools do, so that editors find the place.
func (s *source) complain(pos token.Pos, format string, args ...any) string {
	line := 1
	if pos.IsValid() {
		line = s.fset.Position(pos).Line
	}
	return fmt.Sprintf("%s:%d: %s", s.path, line, fmt.Sprintf(format, args...))
}

// parse reads a file; a Go file that does not parse is a complaint of its own.
func parse(path string, text []byte) (*source, error) {
	s := &source{path: filepath.ToSlash(path), text: text, fset: token.NewFileSet()}
	if !strings.HasSuffix(path, ".go") {
		return s, nil
	}
	f, err := parser.ParseFile(s.fset, path, text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	s.file = f
	return s, nil
}

// rules are all of them. hack/lint itself is exempt where a rule's own text would break it.
var rules = []struct {
	name  string
	check func(*source) []string
}{
	{"file length", checkLength},
	{"forbidden calls", checkCalls},
	{"forbidden imports", checkImports},
	{"detach all", checkDetachAll},
	{"left over", checkLeftOver},
	{"columns", checkColumns},
	{"dialect", checkDialect},
	{"plurals", checkPlurals},
}

// checkLength: a file of more than maxLines holds more than one concern.
func checkLength(s *source) []string {
	if s.file == nil || s.isGenerated() {
		return nil
	}
	if n := bytes.Count(s.text, []byte("\n")); n > maxLines {
		return []string{s.complain(token.NoPos, "%d lines, more than %d: split the file by concern", n, maxLines)}
	}
	return nil
}

// forbiddenCalls maps package.Function to what to do instead.
var forbiddenCalls = map[string]string{
	// They do not look through wrapped errors.
	"os.IsNotExist":   "use errors.Is(err, fs.ErrNotExist)",
	"os.IsExist":      "use errors.Is(err, fs.ErrExist)",
	"os.IsPermission": "use errors.Is(err, fs.ErrPermission)",
	"os.IsTimeout":    "use errors.Is(err, os.ErrDeadlineExceeded)",
	// A sleep can neither be interrupted nor tested.
	"time.Sleep": "wait on a timer and a context, or poll with a deadline",
	// Callers of a TCP port must not be able to take the data path's descriptors.
	"net.Listen": "bound the port with internal/tcplisten and allow it here; Unix sockets are internal/unixsocket's",
	// Renaming without a sync of file and directory is not durable.
	"os.Rename": "use the atomic write of pkg/vfs, or SyncDir after FS.Rename",
}

// allowedCalls are the exceptions: path prefix and call, with the reason.
var allowedCalls = map[string]string{
	"pkg/vfs/ os.Rename": "it is the implementation of FS.Rename",

	"cmd/replicator/ net.Listen":                "link.Server bounds it",
	"cmd/gateway/ net.Listen":                   "link.Server bounds it",
	"internal/metricsserver/ net.Listen":        "bounded in Serve",
	"pkg/driver/port.go net.Listen":             "bounded in serve",
	"internal/statuspage/ net.Listen":           "bounded in Start",
	"internal/testsite/ net.Listen":             "finds a free port",
	"pkg/replication/link/linktest/ net.Listen": "a proxy of tests",
	"test/ net.Listen":                          "programs of tests",
	"hack/external-storage/ net.Listen":         "a program of tests",
}

func checkCalls(s *source) []string {
	if s.file == nil || s.isTest() || s.isGenerated() {
		return nil
	}
	imported := importNames(s.file)
	var complaints []string
	ast.Inspect(s.file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := selector.X.(*ast.Ident)
		if !ok || !imported[pkg.Name] {
			return true
		}
		call := pkg.Name + "." + selector.Sel.Name
		advice, forbidden := forbiddenCalls[call]
		if !forbidden {
			return true
		}
		for allowed := range allowedCalls {
			prefix, allowedCall, _ := strings.Cut(allowed, " ")
			if allowedCall == call && strings.HasPrefix(s.path, prefix) {
				return true
			}
		}
		complaints = append(complaints, s.complain(n.Pos(), "%s: %s", call, advice))
		return true
	})
	return complaints
}

// importNames returns the names under which a file's imports are known, so that a variable called os is no package.
func importNames(f *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, spec := range f.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		if spec.Name != nil {
			names[spec.Name.Name] = true
		} else {
			names[path[strings.LastIndex(path, "/")+1:]] = true
		}
	}
	return names
}

// forbiddenImports maps an import path to what to use instead.
var forbiddenImports = map[string]string{
	"log":       "log with k8s.io/klog/v2, structured",
	"log/slog":  "log with k8s.io/klog/v2, structured",
	"io/ioutil": "use io and os",
	"math/rand": "use math/rand/v2 with an explicit, printed seed",
}

func checkImports(s *source) []string {
	if s.file == nil {
		return nil
	}
	var complaints []string
	for _, spec := range s.file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		if advice, forbidden := forbiddenImports[path]; forbidden {
			complaints = append(complaints, s.complain(spec.Pos(), "import of %s: %s", path, advice))
		}
		// cmd is wiring and flags; nothing may depend on it.
		if strings.Contains(path, "slipstream-storage/slipstream/cmd/") {
			complaints = append(complaints, s.complain(spec.Pos(), "import of %s: commands are not libraries", path))
		}
	}
	return complaints
}

var detachAll = regexp.MustCompile(`losetup\b.*\s(-D|--detach-all)\b`)

// checkDetachAll: detaching every loop device takes away those of other programs on the machine.
func checkDetachAll(s *source) []string {
	if strings.HasPrefix(s.path, "hack/lint/") {
		return nil
	}
	return matchLines(s, detachAll, "losetup -D detaches the devices of others: detach your own by name")
}

var leftOver = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)

// checkLeftOver: what is missing is written down in docs/limitations.md or an issue, where users see it.
func checkLeftOver(s *source) []string {
	if s.isGenerated() || strings.HasPrefix(s.path, "hack/lint/") {
		return nil
	}
	return matchLines(s, leftOver, "unfinished: finish it, or describe the limit in docs/limitations.md")
}

func matchLines(s *source, re *regexp.Regexp, complaint string) []string {
	var complaints []string
	for i, line := range bytes.Split(s.text, []byte("\n")) {
		if re.Match(line) {
			complaints = append(complaints, fmt.Sprintf("%s:%d: %s", s.path, i+1, complaint))
		}
	}
	return complaints
}

// checkPackageComments looks at all files at once: a package says what it is in one file, commands included.
func checkPackageComments(sources []*source) []string {
	first := map[string]*source{}
	documented := map[string]bool{}
	for _, s := range sources {
		if s.file == nil || s.isTest() || s.isGenerated() {
			continue
		}
		dir := s.path[:strings.LastIndex(s.path, "/")+1]
		if first[dir] == nil {
			first[dir] = s
		}
		if s.file.Doc != nil {
			documented[dir] = true
		}
	}
	var complaints []string
	for dir, s := range first {
		if !documented[dir] {
			complaints = append(complaints, s.complain(s.file.Package,
				"package %s has no package comment: say what it is, what it is not, and its concurrency", s.file.Name.Name))
		}
	}
	return complaints
}
