// Package inject builds the deliberate faults of package bug into programs and tests, so that the product's own files
// have none. The faults are in internal/bug/faults, a file each; Overlay applies them to copies of the sources, which
// the go command then takes in place of the originals (-overlay).
//
// A file has one or more changes:
//
//	in pkg/replication (*Volume).Flush
//	- return v.group.commit()
//	+ if bug.Enabled(bug.FlushNothing) {
//	+ 	return nil
//	+ }
//	+ return v.group.commit()
//
// The text behind "-" has to be in the function exactly once, whatever its line breaks, and is replaced by the text
// behind "+". Without "-" the text is put at the beginning of the function. Without a function it is a file of its own
// in the package. Lines that begin with "#" are comments.
//
// A function is found by its name, so it can move to another file of its package. When the product's text changes,
// Overlay fails and says which fault has to follow. It is for tests and not safe for concurrent use of one directory.
package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const bugImport = `import "github.com/slipstream-storage/slipstream/internal/bug"`

// change is one replacement of a fault.
type change struct {
	fault    string // its file's name, for errors
	dir, fn  string
	old, new string
}

func (c change) errorf(format string, args ...any) error {
	where := strings.TrimSpace(c.dir + " " + c.fn)
	return fmt.Errorf("internal/bug/faults/%s: %s: %s", c.fault, where, fmt.Sprintf(format, args...))
}

func parse(fault, text string) (changes []change, err error) {
	for i, line := range strings.Split(text, "\n") {
		mark, rest, _ := strings.Cut(line, " ")
		switch {
		case mark == "" && rest == "", strings.HasPrefix(line, "#"):
			continue
		case mark == "in":
			dir, fn, _ := strings.Cut(rest, " ")
			changes = append(changes, change{fault: fault, dir: dir, fn: fn})
			continue
		}
		if len(changes) == 0 || mark != "-" && mark != "+" {
			return nil, fmt.Errorf("internal/bug/faults/%s:%d: want a line that begins with in, -, + or #", fault, i+1)
		}
		c := &changes[len(changes)-1]
		if mark == "-" {
			c.old += rest + "\n"
		} else {
			c.new += rest + "\n"
		}
	}
	return changes, nil
}

// edit is a change that has found its place.
type edit struct {
	begin, end int
	text       string
}

// Flags returns the flags with which go build and go test build the faults in. It puts the changed sources into dir,
// and finds the module above the working directory.
func Flags(dir string) ([]string, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			return nil, errors.New("no go.mod above the working directory")
		}
		root = filepath.Dir(root)
	}
	overlay, err := Overlay(root, dir)
	return []string{"-tags", "slipstream_bugs", "-overlay", overlay}, err
}

// Overlay writes changed copies of the sources below root into dir, with all faults, and returns the path of the file
// that -overlay wants.
func Overlay(root, dir string) (string, error) {
	faults, err := filepath.Glob(filepath.Join(root, "internal/bug/faults/*.txt"))
	if err != nil || len(faults) == 0 {
		return "", fmt.Errorf("no faults below %s: %v", root, err)
	}
	edits := map[string][]edit{}
	replace := map[string]string{}
	for i, path := range faults {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		changes, err := parse(filepath.Base(path), string(text))
		if err != nil {
			return "", err
		}
		for _, c := range changes {
			if c.fn == "" {
				out := filepath.Join(dir, fmt.Sprintf("new%d.go", i))
				if err := os.WriteFile(out, []byte(c.new), 0o600); err != nil {
					return "", err
				}
				replace[filepath.Join(root, c.dir, "fault_"+strings.TrimSuffix(c.fault, ".txt")+".go")] = out
				continue
			}
			file, e, err := c.place(root)
			if err != nil {
				return "", err
			}
			edits[file] = append(edits[file], e)
		}
	}
	for file, list := range edits {
		out := filepath.Join(dir, fmt.Sprintf("changed%d.go", len(replace)))
		source, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(out, apply(source, list), 0o600); err != nil {
			return "", err
		}
		replace[file] = out
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "overlay.json")
	return out, os.WriteFile(out, list, 0o600)
}

// apply makes edits, which must not overlap, from the last to the first.
func apply(source []byte, list []edit) []byte {
	slices.SortStableFunc(list, func(a, b edit) int { return b.begin - a.begin })
	for _, e := range list {
		source = slices.Concat(source[:e.begin], []byte(e.text), source[e.end:])
	}
	if strings.Contains(string(source), bugImport[len("import "):]) {
		return source
	}
	// On the line of the package clause, so that all other lines keep their numbers.
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "", source, parser.PackageClauseOnly)
	if err != nil {
		return source // the compiler says it better
	}
	at := fset.Position(f.Name.End()).Offset
	return slices.Concat(source[:at], []byte("; "+bugImport), source[at:])
}

// place finds the file and the bytes that a change replaces.
func (c change) place(root string) (file string, e edit, err error) {
	names, err := filepath.Glob(filepath.Join(root, c.dir, "*.go"))
	if err != nil {
		return "", e, err
	}
	found := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return "", e, err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, source, parser.SkipObjectResolution)
		if err != nil {
			return "", e, err
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || nameOf(fn) != c.fn {
				continue
			}
			begin, end := fset.Position(fn.Body.Lbrace).Offset+1, fset.Position(fn.Body.Rbrace).Offset
			places := find(source[begin:end], c.old)
			if c.old == "" {
				places = [][2]int{{0, 0}}
			}
			for _, p := range places {
				file, e = name, edit{begin + p[0], begin + p[1], c.text()}
				found++
			}
		}
	}
	if found != 1 {
		return "", e, c.errorf("the text to replace is there %d times, not once; make the fault follow the code", found)
	}
	return file, e, nil
}

func (c change) text() string {
	if c.old == "" {
		return "\n" + c.new
	}
	return strings.TrimSuffix(c.new, "\n")
}

// nameOf is a function's name as a fault gives it: F, T.F or (*T).F.
func nameOf(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return fn.Name.Name
	}
	switch t := fn.Recv.List[0].Type.(type) {
	case *ast.StarExpr:
		if id, ok := t.X.(*ast.Ident); ok {
			return "(*" + id.Name + ")." + fn.Name.Name
		}
	case *ast.Ident:
		return t.Name + "." + fn.Name.Name
	}
	return fn.Name.Name
}

// word is a token of Go with its place.
type word struct {
	text       string
	begin, end int
}

func words(source []byte) (list []word) {
	var s scanner.Scanner
	file := token.NewFileSet().AddFile("", -1, len(source))
	s.Init(file, source, func(token.Position, string) {}, 0)
	for {
		pos, tok, literal := s.Scan()
		if tok == token.EOF {
			return list
		}
		if literal == "" {
			literal = tok.String()
		}
		if tok == token.SEMICOLON {
			continue // an automatic one depends on the line breaks
		}
		at := file.Offset(pos)
		list = append(list, word{literal, at, at + len(literal)})
	}
}

// find returns where text is in source, compared token by token.
func find(source []byte, text string) (places [][2]int) {
	in, want := words(source), words([]byte(text))
	for i := 0; len(want) > 0 && i+len(want) <= len(in); i++ {
		if slices.EqualFunc(in[i:i+len(want)], want, func(a, b word) bool { return a.text == b.text }) {
			places = append(places, [2]int{in[i].begin, in[i+len(want)-1].end})
		}
	}
	return places
}
