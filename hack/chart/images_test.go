package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestPinnedImages: hack/pin-images.sh asks for each upstream image of the chart, and with what it prints all of them
// are named by digest.
func TestPinnedImages(t *testing.T) {
	stub := t.TempDir()
	crane := "#!/bin/sh\necho \"$2\" >>" + stub + "/asked\necho sha256:$(printf %s \"$2\" | sha256sum | cut -d' ' -f1)\n"
	if err := os.WriteFile(filepath.Join(stub, "crane"), []byte(crane), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../../hack/pin-images.sh")
	cmd.Env = append(os.Environ(), "PATH="+stub+":"+os.Getenv("PATH"))
	pinned, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	values, err := readValues([]string{filepath.Join(chartDir, "testdata", "controller.values.yaml")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(pinned, &values); err != nil {
		t.Fatalf("%v\n%s", err, pinned)
	}
	manifest, err := Render(chartDir, testRelease, values)
	if err != nil {
		t.Fatal(err)
	}
	asked, _ := os.ReadFile(filepath.Join(stub, "asked"))
	upstream := 0
	for _, w := range workloads(decode(t, manifest)) {
		for _, c := range w.pod.Spec.Containers {
			repository, digest, pinned := strings.Cut(c.Image, "@sha256:")
			if strings.Contains(repository, "slipstream-") {
				continue // the project's own, whose digests hack/images.sh prints
			}
			upstream++
			if !pinned || len(digest) != 64 || !strings.Contains(string(asked), repository+":v") {
				t.Errorf("%s/%s: image %s; asked for:\n%s", w.id, c.Name, c.Image, asked)
			}
		}
	}
	if upstream < 5 {
		t.Errorf("%d upstream images", upstream)
	}
}
