// Command paramdoc prints the documentation of the StorageClass parameters, made from the driver's registry of them, so
// that what is documented is what the driver accepts.
package main

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/slipstream-storage/slipstream/hack/markdown"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// The texts around the tables.
var (
	//go:embed head.md
	head string
	//go:embed tail.md
	tail string
	//go:embed snapshots.md
	snapshotHead string
)

func main() {
	if err := write(os.Stdout, parameter.Specs, parameter.SnapshotSpecs); err != nil {
		fmt.Fprintln(os.Stderr, "paramdoc:", err)
		os.Exit(1)
	}
}

func write(w io.Writer, parameters, snapshots []parameter.Spec) error {
	var b strings.Builder
	b.WriteString(head)
	for _, p := range parameters {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", p.Key, values(p), defaultOf(p), mutable(p))
	}
	b.WriteString(tail)
	docs := func(parameters []parameter.Spec) {
		for _, p := range parameters {
			fmt.Fprintf(&b, "\n## %s\n\n%s\n", p.Key, markdown.Fill("", p.Doc))
		}
	}
	docs(parameters)
	b.WriteString(snapshotHead)
	for _, p := range snapshots {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", p.Key, values(p), defaultOf(p))
	}
	docs(snapshots)
	_, err := io.WriteString(w, b.String())
	return err
}

// values says what may be written. Alternatives are separated by commas: a bar would end the table's cell.
func values(p parameter.Spec) string {
	switch p.Type {
	case parameter.TypeBool:
		return code("true", "false")
	case parameter.TypeEnum:
		return code(p.Values...)
	}
	return string(p.Type)
}

func mutable(p parameter.Spec) string {
	if p.Mutable {
		return "yes"
	}
	return "no"
}

func defaultOf(p parameter.Spec) string {
	if p.Default == "" {
		return "none"
	}
	return code(p.Default)
}

func code(words ...string) string {
	return "`" + strings.Join(words, "`, `") + "`"
}
