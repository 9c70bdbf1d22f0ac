package driver

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// TestExamples: the driver takes the parameters of the examples' classes, and none of them puts the claims of several
// namespaces into one group.
func TestExamples(t *testing.T) {
	classes := 0
	for _, file := range []string{"storageclasses", "volumeattributesclasses"} {
		text, err := os.ReadFile("../../deploy/examples/" + file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range bytes.Split(text, []byte("\n---\n")) {
			var class struct {
				Kind       string
				Metadata   struct{ Name string }
				Parameters map[string]string
			}
			if err := yaml.Unmarshal(document, &class); err != nil {
				t.Fatal(err)
			}
			if class.Kind == "" {
				continue // comments only
			}
			classes++
			group := class.Parameters[parameter.KeyConsistencyGroup]
			if group != "" && !strings.Contains(group, "${pvc.namespace}") {
				t.Errorf("%s %s: all claims go into group %s", class.Kind, class.Metadata.Name, group)
			}
			parameters := class.Parameters
			if class.Kind == "VolumeAttributesClass" {
				// It is for a volume that has parameters already.
				parameters = parameter.Overlay(map[string]string{parameter.KeyRemote: "site-b"}, parameters)
			}
			if _, err := parameter.Parse(parameters); err != nil {
				t.Errorf("%s %s: %v", class.Kind, class.Metadata.Name, err)
			}
		}
	}
	if classes < 7 {
		t.Errorf("%d classes", classes)
	}
}
