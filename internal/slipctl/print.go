package slipctl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
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

// printProto writes a message as JSON with every field: fields with zero values are there too, and what is unknown is
// null.
func printProto(w io.Writer, m proto.Message) error {
	value, err := protoValue(m)
	if err != nil {
		return err
	}
	return printJSON(w, value)
}

// compactProto is printProto on one line, for streams.
func compactProto(m proto.Message) (string, error) {
	value, err := protoValue(m)
	if err != nil {
		return "", err
	}
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	err = encoder.Encode(value)
	return strings.TrimSuffix(line.String(), "\n"), err
}

// protoValue is the JSON of a message as a value of encoding/json. protojson cannot be printed as it is: it varies its
// spaces on purpose, and it leaves out optional fields that are not set.
func protoValue(m proto.Message) (any, error) {
	out, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var value any
	if err := json.Unmarshal(out, &value); err != nil {
		return nil, err
	}
	completeJSON(m.ProtoReflect(), value)
	return value, nil
}

// completeJSON gives a message's JSON its optional fields that are not set, and roles and states as words.
func completeJSON(m protoreflect.Message, value any) {
	object, ok := value.(map[string]any)
	if !ok {
		return // a message that has a JSON form of its own
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.HasOptionalKeyword() && !m.Has(f):
			object[f.JSONName()] = nil
		case isEnum(f, sidecarpb.Role(0)):
			object[f.JSONName()] = sidecarpb.Role(m.Get(f).Enum()).Word()
		case isEnum(f, sidecarpb.GroupState(0)):
			object[f.JSONName()] = sidecarpb.GroupState(m.Get(f).Enum()).Word()
		case f.IsList() && f.Message() != nil:
			list, _ := object[f.JSONName()].([]any)
			for j := range list {
				completeJSON(m.Get(f).List().Get(j).Message(), list[j])
			}
		case !f.IsMap() && f.Message() != nil && m.Has(f):
			completeJSON(m.Get(f).Message(), object[f.JSONName()])
		}
	}
}

func isEnum(f protoreflect.FieldDescriptor, value protoreflect.Enum) bool {
	return !f.IsList() && f.Enum() != nil && f.Enum().FullName() == value.Descriptor().FullName()
}

func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
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

// confirm asks a person a question. Without a terminal it fails and names the flag that answers it.
func (c *cli) confirm(question, flag string) error {
	if !isTerminal(c.stdin) {
		return usagef("this needs a yes, and standard input is no terminal: give %s", flag)
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
	return fmt.Errorf("nothing was done")
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
