package driver

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The driver takes the parameters of every class that the documents and the chart show, whole classes, not only the keys.
func TestExamples(t *testing.T) {
	var files []string
	for _, pattern := range []string{"examples/*.yaml", "testdriver-*.yaml", "manifests/slipstream.yaml", "charts/slipstream/testdata/*.golden.yaml"} {
		found, err := filepath.Glob(filepath.Join("..", "..", "deploy", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	classes := map[string]int{}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		decoder := yaml.NewDecoder(f)
		for {
			var object struct {
				Kind        string
				Metadata    struct{ Name string }
				Provisioner string // of a StorageClass
				DriverName  string `yaml:"driverName"` // of a VolumeAttributesClass
				Driver      string // of a snapshot class
				Parameters  map[string]string
			}
			err := decoder.Decode(&object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			driver, read := "", error(nil)
			switch object.Kind {
			case "StorageClass":
				driver = object.Provisioner
				_, read = parseParameters(object.Parameters)
			case "VolumeAttributesClass":
				driver = object.DriverName
				_, read = parseMutation(object.Parameters)
			case "VolumeSnapshotClass", "VolumeGroupSnapshotClass":
				driver = object.Driver
				_, read = parseSnapshotParameters(object.Parameters)
			default:
				continue
			}
			classes[object.Kind]++
			if driver != Name {
				t.Errorf("%s: class %s is for %q", file, object.Metadata.Name, driver)
			}
			if read != nil {
				t.Errorf("%s: class %s: %v", file, object.Metadata.Name, read)
			}
		}
	}
	if len(classes) != 4 {
		t.Errorf("found %v, want some of each kind", classes)
	}
}
