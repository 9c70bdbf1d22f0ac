package slipctl

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
	value, err := wordjson.Value(m)
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

// showFile is showValue for what is in a file of JSON.
func (c *cli) showFile(path string, text func() error) error {
	if !c.structured() {
		return text()
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return c.write(json.RawMessage(content))
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
	value, err := wordjson.Value(m)
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
