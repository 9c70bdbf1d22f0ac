// Command testsummary reads the output of `go test -json` and prints what a person wants of it: a line per package as
// it ends, the whole output of each test that failed, each skipped test with its reason, and the totals.
//
// The exit status is 1 when a test or a build failed, or when no test ran at all.
//
// gotestsum is the well-known tool for this. It does not take its place because it succeeds when no test ran, and does
// not tell why a test was skipped.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"
	"strings"
	"time"
)

// event is a line of go test -json (see go doc test2json). Build output has ImportPath instead of Package.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

type testKey struct{ pkg, test string }

type summary struct {
	out     io.Writer
	output  map[testKey][]string
	skipped []string
	failed  []string
	// why has the first message of each of failed that printed one.
	why     map[string]string
	slowest []slowTest
	passed  int
	builds  map[string]bool
}

type slowTest struct {
	name    string
	seconds float64
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, output: map[testKey][]string{}, why: map[string]string{}, builds: map[string]bool{}}
}

func main() {
	start := time.Now()
	s := newSummary(os.Stdout)
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testsummary: reading go test -json:", err)
		os.Exit(1)
	}
	if !s.print(time.Since(start)) {
		os.Exit(1)
	}
}

// read consumes events up to the end. A line that is no event comes from the go command itself and is passed on.
func (s *summary) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			var e event
			if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(s.out, line)
			} else {
				s.add(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) add(e event) {
	key := testKey{e.Package, e.Test}
	name := shorten(e.Package)
	if e.Test != "" {
		name += "." + e.Test
	}
	switch e.Action {
	case "output":
		s.output[key] = append(s.output[key], e.Output)
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "build-fail":
		s.builds[e.ImportPath] = true
	case "pass":
		if e.Test == "" {
			fmt.Fprintf(s.out, "ok    %-52s %7.1fs\n", name, e.Elapsed)
		} else if !strings.Contains(e.Test, "/") {
			s.passed++
			s.slowest = append(s.slowest, slowTest{name, e.Elapsed})
		}
		delete(s.output, key)
	case "skip":
		// A package without tests is skipped as a whole: nothing to say about it.
		if e.Test != "" {
			s.skipped = append(s.skipped, name+": "+reason(s.output[key]))
		}
		delete(s.output, key)
	case "fail":
		if e.Test == "" {
			fmt.Fprintf(s.out, "FAIL  %-52s %7.1fs\n", name, e.Elapsed)
			s.unfinished(e.Package)
		}
		// A package's own output is the same lines again and a panic's trace; only the latter is wanted.
		if e.Test != "" || !s.hasFailure(e.Package) {
			s.failed = append(s.failed, name)
			if e.Test != "" && !strings.Contains(e.Test, "/") {
				s.slowest = append(s.slowest, slowTest{name, e.Elapsed})
			}
			s.why[name] = message(s.output[key])
			for _, line := range s.output[key] {
				fmt.Fprint(s.out, "      ", line)
			}
		}
		delete(s.output, key)
	}
}

// unfinished reports the tests that a package's end found running, as after a timeout: go test says nothing of them,
// and gives the trace of all goroutines to one of them.
func (s *summary) unfinished(pkg string) {
	var keys []testKey
	for key := range s.output {
		if key.pkg == pkg && key.test != "" {
			keys = append(keys, key)
		}
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i].test < keys[j].test })
	for _, key := range keys {
		s.failed = append(s.failed, shorten(key.pkg)+"."+key.test+" (did not end)")
		for _, line := range s.output[key] {
			fmt.Fprint(s.out, "      ", line)
		}
		delete(s.output, key)
	}
}

func (s *summary) hasFailure(pkg string) bool {
	prefix := shorten(pkg) + "."
	for _, name := range s.failed {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// print reports the totals, and whether all is well.
func (s *summary) print(elapsed time.Duration) bool {
	sort.Slice(s.slowest, func(i, j int) bool { return s.slowest[i].seconds > s.slowest[j].seconds })
	if len(s.slowest) > 0 && s.slowest[0].seconds >= 5 {
		fmt.Fprintln(s.out, "\nlongest:")
		for i, t := range s.slowest {
			if i == 8 || t.seconds < 5 {
				break
			}
			fmt.Fprintf(s.out, "  %6.1fs  %s\n", t.seconds, t.name)
		}
	}
	if len(s.skipped) > 0 {
		fmt.Fprintln(s.out, "\nskipped:")
		for _, line := range s.skipped {
			fmt.Fprintln(s.out, "  "+line)
		}
	}
	if len(s.failed) > 0 {
		fmt.Fprintln(s.out, "\nfailed:")
		for _, line := range s.failed {
			fmt.Fprintln(s.out, "  "+line)
			if why := s.why[line]; why != "" {
				fmt.Fprintln(s.out, "    "+why)
			}
		}
	}
	fmt.Fprintf(s.out, "\n%d tests passed, %d failed, %d skipped, %d builds failed in %s\n",
		s.passed, len(s.failed), len(s.skipped), len(s.builds), elapsed.Round(time.Second))
	return len(s.failed) == 0 && len(s.builds) == 0 && s.passed > 0
}

// message is the first line that a failed test printed through its testing.T, shortened: the end of a long output is
// often all that a continuous integration shows.
func message(output []string) string {
	const most = 400
	for _, line := range output {
		if line = strings.TrimSpace(line); position.MatchString(line) {
			return line[:min(len(line), most)]
		}
	}
	return ""
}

// position begins what a test prints through its testing.T.
var position = regexp.MustCompile(`^\w+_test\.go:\d+: `)

// reason is the text a skipped test gave, without the frame that go test puts around it.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		return line
	}
	return "no reason given"
}

func shorten(pkg string) string {
	return strings.TrimPrefix(strings.TrimPrefix(pkg, "github.com/slipstream-storage/slipstream"), "/")
}
