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

// twoSites are the values of the README: a name, a peer and a certificate.
const twoSites = "site: {name: site-a, peers: {site-b: 'b.example.com:9443'}}\n" +
	"tls: {existingSecret: slipstream-link-tls}\n"

// TestOwnImages: without values for images, the chart names the images that hack/images.sh makes, and no other of this
// repository.
func TestOwnImages(t *testing.T) {
	cmd := exec.Command("../../hack/images.sh", "--names")
	cmd.Env = append(os.Environ(), "TEST=", "IMAGE_PREFIX=", "IMAGE_TAG=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]bool{}
	for _, name := range strings.Fields(string(out)) {
		made[name] = false
	}
	for _, w := range workloads(renderText(t, twoSites)) {
		for _, c := range append(w.pod.Spec.InitContainers, w.pod.Spec.Containers...) {
			if _, own := made[c.Image]; own {
				made[c.Image] = true
			} else if strings.Contains(c.Image, "slipstream-") {
				t.Errorf("%s/%s: image %s is not made by hack/images.sh: %s", w.id, c.Name, c.Image, out)
			}
		}
	}
	if len(made) != 2 {
		t.Errorf("images %v", made)
	}
	for name, used := range made {
		if !used {
			t.Errorf("no pod has image %s", name)
		}
	}
}

// TestDefaults: with a name, a peer and a certificate, and nothing else, there are controller, gateway and operator.
func TestDefaults(t *testing.T) {
	have := map[string]bool{}
	for _, w := range workloads(renderText(t, twoSites)) {
		have[w.id] = true
	}
	for _, want := range []string{"controller", "gateway", "operator", "node", "keeper"} {
		found := false
		for id := range have {
			found = found || strings.HasSuffix(id, "slipstream-"+want)
		}
		if !found {
			t.Errorf("there is no %s: %v", want, have)
		}
	}
}
