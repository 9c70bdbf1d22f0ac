package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sampleDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755),
		os.WriteFile(filepath.Join(dir, "usr/bin/tool"), []byte("#!/bin/sh\n"), 0o755),
		os.WriteFile(filepath.Join(dir, "readme"), nil, 0o640),
		os.Symlink("usr/bin", filepath.Join(dir, "bin")),
		os.Mkdir(filepath.Join(dir, "tmp"), 0o755),
		os.Chmod(filepath.Join(dir, "tmp"), 0o1777|os.ModeSticky),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readTar(t *testing.T, text []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for in := tar.NewReader(bytes.NewReader(text)); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || !header.ModTime.Equal(epoch) {
			t.Errorf("%s: owner %d:%d, time %v", header.Name, header.Uid, header.Gid, header.ModTime)
		}
		switch header.Typeflag {
		case tar.TypeSymlink:
			files[header.Name] = "-> " + header.Linkname
		case tar.TypeDir:
			files[header.Name] = os.FileMode(header.Mode & 0o7777).String()
		default:
			files[header.Name] = string(content)
		}
	}
}

// TestWriteIsALayout follows the digests from the index to the files, as an importer of the image does.
func TestWriteIsALayout(t *testing.T) {
	image := Image{Names: []string{"a.test/x:1", "a.test/y:2"}, Dir: sampleDir(t),
		Entrypoint: []string{"/usr/bin/tool", "-v"}, Env: []string{"A=b"}, User: "65532"}
	var out bytes.Buffer
	written, err := image.Write(&out)
	if err != nil {
		t.Fatal(err)
	}
	files := readTar(t, out.Bytes())
	open := func(d descriptor, v any) string {
		text, ok := files[blobPath(d)]
		if sum := sha256.Sum256([]byte(text)); !ok || d.Digest != digest(sum[:]) || d.Size != int64(len(text)) {
			t.Fatalf("blob %+v: there %v, %d bytes", d, ok, len(text))
		}
		if v != nil {
			if err := json.Unmarshal([]byte(text), v); err != nil {
				t.Fatal(err)
			}
		}
		return text
	}
	var top index
	if err := json.Unmarshal([]byte(files["index.json"]), &top); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range top.Manifests {
		names = append(names, d.Annotations["io.containerd.image.name"])
	}
	if diff := cmp.Diff(image.Names, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	var m manifest
	open(top.Manifests[0], &m)
	if top.Manifests[0].Digest != written {
		t.Errorf("the digest of %s was given as %s", top.Manifests[0].Digest, written)
	}
	var c config
	open(m.Config, &c)
	if c.Config.User != "65532" || c.Config.Env[1] != "A=b" || c.Config.Entrypoint[1] != "-v" {
		t.Errorf("config %+v", c)
	}
	if c.RootFS.DiffIDs[0] != m.Layers[0].Digest {
		t.Errorf("the layer is %s, the config says %s", m.Layers[0].Digest, c.RootFS.DiffIDs[0])
	}
	want := map[string]string{
		"bin": "-> usr/bin", "readme": "", "usr/": "-rwxr-xr-x", "usr/bin/": "-rwxr-xr-x", "usr/bin/tool": "#!/bin/sh\n",
		"tmp/": os.FileMode(0o1777).String(),
	}
	if diff := cmp.Diff(want, readTar(t, []byte(open(m.Layers[0], nil)))); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
}

func TestWriteIsTheSameTwice(t *testing.T) {
	var outs [2]bytes.Buffer
	for i := range outs {
		dir := sampleDir(t)
		at := time.Unix(int64(i)*1000, 0)
		if err := os.Chtimes(filepath.Join(dir, "readme"), at, at); err != nil {
			t.Fatal(err)
		}
		image := Image{Names: []string{"a.test/x:1"}, Dir: dir}
		if _, err := image.Write(&outs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(outs[0].Bytes(), outs[1].Bytes()) {
		t.Error("the same content gave two images")
	}
}

func TestRun(t *testing.T) {
	dir := sampleDir(t)
	out := filepath.Join(t.TempDir(), "x.tar")
	if err := run([]string{"--name", "a.test/x:1", "-o", out, dir}); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Dir(out)); err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
	if err := run([]string{"-o", out, dir}); err == nil {
		t.Error("an image without a name was made")
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"--name", "a.test/x:1", "-o", out, dir}); err == nil || !strings.Contains(err.Error(), "pipe") {
		t.Errorf("a pipe was packed: %v", err)
	}
}
