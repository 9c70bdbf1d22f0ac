package frame

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/slipstream-storage/slipstream/internal/wordjson"
)

// The formats of --output.
const (
	OutputTable = "table"
	OutputJSON  = "json"
	OutputYAML  = "yaml"
)

// Structured reports whether the result is for a program.
func (c *CLI) Structured() bool { return c.Output != OutputTable }

// Show prints an answer of the replicator: all of it as JSON or YAML, or what text writes for a person.
//
// The types of fields are stable. Every field is there, also with its zero value. What is unknown is null. Integers are
// numbers, enumerations are words in lower case, times in nanoseconds are integers.
func (c *CLI) Show(m proto.Message, text func() error) error {
	if !c.Structured() {
		return text()
	}
	value, err := wordjson.Value(m)
	if err != nil {
		return err
	}
	return c.write(value)
}

// ShowChange is Show for a command that changes something: the field "changed" says whether it did.
func (c *CLI) ShowChange(m proto.Message, changed bool, text func() error) error {
	if !c.Structured() {
		return text()
	}
	value, err := wordjson.Value(m)
	if err != nil {
		return err
	}
	if object, ok := value.(map[string]any); ok {
		object["changed"] = changed
	}
	return c.write(value)
}

// ShowValue is show for what is no message. The value's JSON has all of its fields.
func (c *CLI) ShowValue(value any, text func() error) error {
	if !c.Structured() {
		return text()
	}
	return c.write(value)
}

// ShowFile is showValue for what is in a file of JSON.
func (c *CLI) ShowFile(path string, text func() error) error {
	if !c.Structured() {
		return text()
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return c.write(json.RawMessage(content))
}

// Fields is a result that a command puts together itself.
type Fields map[string]any

// Say prints the result of a command that changes something: the fields for a program, a sentence for a person.
func (c *CLI) Say(result Fields, format string, args ...any) error {
	return c.ShowValue(result, func() error {
		_, err := fmt.Fprintf(c.Out, format+"\n", args...)
		return err
	})
}

// write prints a value as JSON or YAML, and ends a document of a stream.
func (c *CLI) write(value any) error {
	if c.Output == OutputYAML {
		text, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = c.Out.Write(text)
		return err
	}
	return EncodeJSON(c.Out, value, "  ")
}

// ShowNext prints one of a stream of answers: JSON on a line of its own, YAML as a document of its own.
func (c *CLI) ShowNext(m proto.Message) error {
	value, err := wordjson.Value(m)
	if err != nil {
		return err
	}
	if c.Output == OutputYAML {
		if _, err := fmt.Fprintln(c.Out, "---"); err != nil {
			return err
		}
		return c.write(value)
	}
	return EncodeJSON(c.Out, value, "")
}

// EncodeJSON writes a value as JSON, and ends the line. Without an indent it is one line.
func EncodeJSON(w io.Writer, value any, indent string) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", indent)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// Lines returns a writer for one JSON object to a line. With --output yaml each becomes a document.
func (c *CLI) Lines() io.Writer {
	if c.Output != OutputYAML {
		return c.Out
	}
	return &yamlDocuments{out: c.Out}
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
