package slipctl

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// newTable returns a table without a frame, so that its columns can be cut and copied.
func newTable(header ...string) table.Writer {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	if len(header) == 0 {
		return t
	}
	row := make(table.Row, len(header))
	for i, h := range header {
		row[i] = h
	}
	t.AppendHeader(row)
	return t
}

func printTable(w io.Writer, t table.Writer) error {
	_, err := fmt.Fprintln(w, t.Render())
	return err
}

// isTerminal reports whether v is a file that is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// consent is the person's answer to a command that destroys something: --yes, or a yes at the terminal.
type consent struct{ yes bool }

// addYes gives a command the flag --yes.
func addYes(cmd *cobra.Command) *consent {
	a := &consent{}
	cmd.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask for confirmation")
	return a
}

// confirm says what will be lost, and asks. Away from a terminal it fails and names the flag that answers.
func (c *cli) confirm(given *consent, what, question string) error {
	if what != "" {
		fmt.Fprintln(c.err, strings.TrimSuffix(what, "\n"))
	}
	if given.yes {
		return nil
	}
	if !isTerminal(c.stdin) {
		return usagef("this needs a yes, and standard input is no terminal: give --yes")
	}
	fmt.Fprintf(c.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(c.stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return fmt.Errorf("not confirmed: nothing was done")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// orDash is for table cells without a value.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
