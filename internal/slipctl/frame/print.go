package frame

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

// NewTable returns a table without a frame, so that its columns can be cut and copied.
func NewTable(header ...string) table.Writer {
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

// PrintTable writes a table and ends the line.
func PrintTable(w io.Writer, t table.Writer) error {
	_, err := fmt.Fprintln(w, t.Render())
	return err
}

// IsTerminal reports whether v is a file that is a terminal.
func IsTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Consent is the person's answer to a command that destroys something: --yes, or a yes at the terminal.
type Consent struct{ yes bool }

// AddYes gives a command the flag --yes.
func AddYes(cmd *cobra.Command) *Consent {
	a := &Consent{}
	cmd.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask for confirmation")
	return a
}

// Confirm says what will be lost, and asks. Away from a terminal it fails and names the flag that answers.
func (c *CLI) Confirm(given *Consent, what, question string) error {
	if what != "" {
		fmt.Fprintln(c.Err, strings.TrimSuffix(what, "\n"))
	}
	if given.yes {
		return nil
	}
	if !IsTerminal(c.Stdin) {
		return Usagef("this needs a yes, and standard input is no terminal: give --yes")
	}
	fmt.Fprintf(c.Err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(c.Stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return fmt.Errorf("not confirmed: nothing was done")
}

// YesNo is the word for a value of a status.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// OrDash is for table cells without a value.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
