// Package wordjson turns messages of the API into JSON for people's programs. The types of fields are stable: every
// field is there, also with its zero value; what is unknown is null; integers are numbers; enumerations are words in
// lower case. It has no state.
package wordjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Value returns the JSON of a message as a value of encoding/json. protojson cannot be printed as it is: it varies its
// spaces on purpose, leaves out optional fields that are not set, and writes 64-bit integers as text.
func Value(m proto.Message) (any, error) {
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
