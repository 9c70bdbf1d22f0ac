// Package progflags is what the command lines of the long-running programs have in common: --help and --version, which
// succeed and print to standard output, the logging flags of klog, which --help-logging explains, and the refusal of
// stray arguments.
//
// It is not for slipctl, which has commands. A Set is used once, by one goroutine.
package progflags

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"k8s.io/klog/v2"
)

// ErrDone says that the command line asked for a text, and that it was printed. Main takes it as success.
var ErrDone = errors.New("done")

// Set is the flags of one program.
type Set struct {
	*flag.FlagSet
	about, version string
	logging        flag.FlagSet
	out            io.Writer
}

// New returns a set with --help, --help-logging and --version, and klog's flags. about is a sentence or two for the
// head of the help.
func New(program, about, version string) *Set {
	s := &Set{FlagSet: flag.NewFlagSet(program, flag.ContinueOnError), about: about, version: version, out: os.Stdout}
	s.SetOutput(io.Discard) // errors are returned, and help is printed here
	klog.InitFlags(&s.logging)
	s.logging.VisitAll(func(f *flag.Flag) { s.Var(f.Value, f.Name, f.Usage) })
	return s
}

// Parse reads the arguments. It returns ErrDone for --help, --help-logging and --version, and an error for what is no
// flag.
func (s *Set) Parse(args []string) error {
	version := s.Bool("version", false, "print the version and exit")
	logging := s.Bool("help-logging", false, "print the flags of the log and exit")
	err := s.FlagSet.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		s.help(func(f *flag.Flag) bool { return f.Name == "v" || s.logging.Lookup(f.Name) == nil })
		return ErrDone
	case err != nil:
		return fmt.Errorf("%w; see %s --help", err, s.Name())
	case *logging:
		s.help(func(f *flag.Flag) bool { return s.logging.Lookup(f.Name) != nil })
		return ErrDone
	case *version:
		_, err := fmt.Fprintln(s.out, s.version)
		return cmp.Or(err, ErrDone)
	case s.NArg() > 0:
		return fmt.Errorf("unexpected argument %q; see %s --help", s.Arg(0), s.Name())
	}
	return nil
}

// helpIndent and helpWidth shape the lines of the help.
const (
	helpIndent = "        "
	helpWidth  = 100
)

func (s *Set) help(shown func(*flag.Flag) bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\nUsage: %s [--FLAG VALUE ...]\n\n", s.Name(), s.about, s.Name())
	var flags []*flag.Flag
	s.VisitAll(func(f *flag.Flag) {
		if shown(f) {
			flags = append(flags, f)
		}
	})
	slices.SortFunc(flags, func(a, b *flag.Flag) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range flags {
		kind, usage := flag.UnquoteUsage(f)
		b.WriteString(strings.TrimRight("  --"+f.Name+" "+kind, " ") + "\n")
		if zero := f.DefValue == "" || f.DefValue == "false" || f.DefValue == "0" || f.DefValue == "0s" ||
			f.DefValue == "map[]"; !zero && !strings.Contains(usage, "default") {
			usage += " (default " + f.DefValue + ")"
		}
		b.WriteString(wrap(usage))
	}
	_, _ = io.WriteString(s.out, b.String())
}

// wrap breaks a text into indented lines.
func wrap(text string) string {
	var b strings.Builder
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(helpIndent)+len(line)+1+len(word) > helpWidth {
			b.WriteString(helpIndent + line + "\n")
			line = ""
		}
		line = strings.TrimLeft(line+" "+word, " ")
	}
	return b.String() + helpIndent + line + "\n"
}

// Main runs a program and returns its exit status: 0 for success and for ErrDone, 1 otherwise, with the error on
// standard error. It flushes the log.
func Main(program string, run func(args []string) error) int {
	err := run(os.Args[1:])
	klog.Flush()
	if err == nil || errors.Is(err, ErrDone) {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
	return 1
}
