package slipctl

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
)

// each calls f with every command that a person sees.
func each(cmd *cobra.Command, f func(*cobra.Command)) {
	for _, child := range cmd.Commands() {
		if !child.Hidden {
			f(child)
			each(child, f)
		}
	}
}

// Every command has what all commands have: an example that is right, and a check of its arguments.
func TestEveryCommand(t *testing.T) {
	each((&cli{&frame.CLI{}}).command(), func(cmd *cobra.Command) {
		if cmd.Args == nil && cmd.Name() != "help" {
			t.Errorf("%s takes any arguments", cmd.CommandPath())
		}
		if cmd.HasSubCommands() {
			return
		}
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
			return
		}
		for _, line := range strings.Split(cmd.Example, "\n") {
			if err := checkLine(line); err != nil {
				t.Errorf("%s: example %q: %v", cmd.CommandPath(), line, err)
			}
			if !strings.HasPrefix(line, "  "+cmd.CommandPath()) && cmd.CommandPath() != "slipctl" {
				t.Errorf("%s: example %q is of another command", cmd.CommandPath(), line)
			}
		}
	})
}

// Every command that messages of the programs, documents, alerts and scripts name exists, with its flags and arguments.
func TestNamedCommands(t *testing.T) {
	found := 0
	check := func(where, line string) {
		found++
		if err := checkLine(line); err != nil {
			t.Errorf("%s names %q: %v", where, line, err)
		}
	}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "bin" ||
			strings.HasSuffix(d.Name(), "-results")):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".pb.go"):
			return messages(path, check)
		case strings.HasSuffix(path, ".md"):
			return documented(path, check)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 40 {
		t.Errorf("only %d commands were found", found)
	}
}

// quoted is a command in backquotes, as messages have it; bare is one without them, of which only the verb is known.
var (
	quoted = regexp.MustCompile("`(slipctl [a-z][^`]*)`")
	bare   = regexp.MustCompile(`(?:^|[^\x60/a-z])(slipctl (?:group|volume|site|journal) [a-z]+(?:-[a-z]+)*)`)
)

// messages finds commands in the texts of a Go file. A text that is put together with + is one text.
func messages(path string, check func(where, line string)) error {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		return err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		expression, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		text, ok := joined(expression)
		if !ok {
			return true
		}
		where := files.Position(n.Pos()).String()
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			line := placeholders.ReplaceAllString(m[1], "x")
			if len(strings.Fields(line)) == 3 { // the name of a command in a sentence
				line += verbOnly
			}
			check(where, line)
		}
		for _, m := range bare.FindAllStringSubmatch(text, -1) {
			check(where, m[1]+verbOnly)
		}
		return false
	})
	return nil
}

var placeholders = regexp.MustCompile(`%[a-z]`)

// verbOnly marks a line of which only the command is checked.
const verbOnly = " #verb"

// joined returns a text constant, also one that is put together.
func joined(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		left, _ := joined(e.X)
		right, _ := joined(e.Y)
		return left + right, e.Op == token.ADD && left+right != ""
	}
	return "", false
}

// documented finds commands in a document: in backquotes, and in blocks.
func documented(path string, check func(where, line string)) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	whole := strings.ReplaceAll(string(text), "\\\n", " ")
	fenced := false
	for i, line := range strings.Split(whole, "\n") {
		where := fmt.Sprintf("%s, block line %d", path, i+1)
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			if !strings.Contains(m[1], "...") {
				check(where, m[1]+verbOnly)
			}
		}
		trimmed := strings.TrimPrefix(strings.TrimSpace(line), "$ ")
		if (fenced || strings.HasPrefix(line, "    ")) && strings.HasPrefix(trimmed, "slipctl ") {
			check(where, trimmed)
		}
	}
	return nil
}

// checkLine parses a command line without running it. A pipe ends it.
func checkLine(line string) error {
	line, onlyVerb := strings.CutSuffix(line, verbOnly)
	line, _, _ = strings.Cut(line, "|")
	line, _, _ = strings.Cut(line, " >")
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "slipctl" {
		return fmt.Errorf("it does not begin with slipctl and a command")
	}
	if words[1] == "--version" || words[1] == "--help" {
		return nil
	}
	if words[1] == "completion" {
		return nil // cobra's, which is there once the command runs
	}
	for i, w := range words {
		words[i] = strings.Trim(w, `'"`)
	}
	root := (&cli{&frame.CLI{}}).command()
	cmd, rest, err := root.Find(words[1:])
	if err != nil {
		return err
	}
	if onlyVerb {
		if cmd == root || cmd.HasSubCommands() && len(rest) > 0 {
			return fmt.Errorf("there is no such command")
		}
		return nil
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}
