package slipctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"sigs.k8s.io/yaml"
)

// The formats of --output.
const (
	outputTable = "table"
	outputJSON  = "json"
	outputYAML  = "yaml"
)

// structured reports whether the result is for a program.
func (c *cli) structured() bool { return c.output != outputTable }

// show prints an answer of the replicator: all of it as JSON or YAML, or what text writes for a person.
//
// The types of fields are stable. Every field is there, also with its zero value. What is unknown is null. Integers are
// numbers, enumerations are words in lower case, times in nanoseconds are integers.
func (c *cli) show(m proto.Message, text func() error) error {
	if !c.structured() {
		return text()
	}
	value, err := protoValue(m)
	if err != nil {
		return err
	}
	return c.write(value)
}

// showValue is show for what is no message. The value's JSON has all of its fields.
func (c *cli) showValue(value any, text func() error) error {
	if !c.structured() {
		return text()
	}
	return c.write(value)
}

// fields is a result that a command puts together itself.
type fields map[string]any

// say prints the result of a command that changes something: the fields for a program, a sentence for a person.
func (c *cli) say(result fields, format string, args ...any) error {
	return c.showValue(result, func() error {
		_, err := fmt.Fprintf(c.out, format+"\n", args...)
		return err
	})
}

// write prints a value as JSON or YAML, and ends a document of a stream.
func (c *cli) write(value any) error {
	if c.output == outputYAML {
		text, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = c.out.Write(text)
		return err
	}
	return encodeJSON(c.out, value, "  ")
}

// showNext prints one of a stream of answers: JSON on a line of its own, YAML as a document of its own.
func (c *cli) showNext(m proto.Message) error {
	value, err := protoValue(m)
	if err != nil {
		return err
	}
	if c.output == outputYAML {
		if _, err := fmt.Fprintln(c.out, "---"); err != nil {
			return err
		}
		return c.write(value)
	}
	return encodeJSON(c.out, value, "")
}

func encodeJSON(w io.Writer, value any, indent string) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", indent)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// protoValue is the JSON of a message as a value of encoding/json. protojson cannot be printed as it is: it varies its
// spaces on purpose, leaves out optional fields that are not set, and writes 64-bit integers as text.
func protoValue(m proto.Message) (any, error) {
	out, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(out))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	completeJSON(m.ProtoReflect(), value)
	return value, nil
}

// completeJSON gives a message's JSON its optional fields that are not set, integers as numbers, and enumerations as
// words.
func completeJSON(m protoreflect.Message, value any) {
	object, ok := value.(map[string]any)
	if !ok {
		return // a message that has a JSON form of its own
	}
	all := m.Descriptor().Fields()
	for i := range all.Len() {
		f := all.Get(i)
		name := f.JSONName()
		switch {
		case f.IsMap():
			// The API has none with values that need a change.
		case f.HasPresence() && !m.Has(f):
			object[name] = nil
		case f.IsList():
			list, _ := object[name].([]any)
			for j := range list {
				list[j] = fieldJSON(f, m.Get(f).List().Get(j), list[j])
			}
		default:
			object[name] = fieldJSON(f, m.Get(f), object[name])
		}
	}
}

func fieldJSON(f protoreflect.FieldDescriptor, v protoreflect.Value, value any) any {
	switch text, isText := value.(string); {
	case f.Message() != nil:
		completeJSON(v.Message(), value)
	case f.Enum() != nil:
		return enumWord(f.Enum(), v.Enum())
	case isText && (f.Kind() == protoreflect.Int64Kind || f.Kind() == protoreflect.Uint64Kind):
		return json.Number(text)
	}
	return value
}

// enumWord is the name of an enumeration's value without the enumeration's own name, as sidecarpb has it for roles and
// states; empty for the unspecified value.
func enumWord(e protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	value := e.Values().ByNumber(n)
	if value == nil {
		return fmt.Sprint(n) // of a newer replicator
	}
	// The prefix is the enumeration's name in upper case: GroupState becomes GROUP_STATE_.
	var prefix strings.Builder
	for i, r := range string(e.Name()) {
		if i > 0 && r >= 'A' && r <= 'Z' {
			prefix.WriteByte('_')
		}
		prefix.WriteString(strings.ToUpper(string(r)))
	}
	word := strings.ToLower(strings.TrimPrefix(string(value.Name()), prefix.String()+"_"))
	if word == "unspecified" {
		return ""
	}
	return strings.ReplaceAll(word, "_", "-")
}

// lines returns a writer for one JSON object to a line. With --output yaml each becomes a document.
func (c *cli) lines() io.Writer {
	if c.output != outputYAML {
		return c.out
	}
	return &yamlDocuments{out: c.out}
}

type yamlDocuments struct {
	out   io.Writer
	begun []byte // a line without its end
}

func (y *yamlDocuments) Write(b []byte) (int, error) {
	y.begun = append(y.begun, b...)
	for {
		line, rest, whole := bytes.Cut(y.begun, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		text, err := yaml.JSONToYAML(line)
		if err != nil {
			return 0, err
		}
		if _, err := fmt.Fprintf(y.out, "---\n%s", text); err != nil {
			return 0, err
		}
		y.begun = rest
	}
}
