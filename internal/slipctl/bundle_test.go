package slipctl

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// planted are secrets and contents of a site's files that must not be in a bundle.
var planted = map[string]string{
	"tls/tls.key":        "PLANTED-tls-key",
	"tls/ca.key":         "PLANTED-authority-key",
	"token":              "PLANTED-token",
	"pool/volumes/image": "PLANTED-volume-content",
	"replicator.log": "I1128 12:00:00 started\nW1128 token=PLANTED-logged Authorization: Bearer PLANTED-bearer-1234\n" +
		"-----BEGIN PRIVATE KEY-----\nPLANTEDkey\n-----END PRIVATE KEY-----\nI1128 12:00:01 serves\n",
}

// siteOf makes the directory of a site, with a volume, a group whose journal has a record, and what is planted.
func siteOf(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "site") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	pool := filepath.Join(dir, "pool")
	if err := makePool(pool); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(pool, "groups", "g-1")
	options := journal.Options{FS: vfs.OS, Dir: filepath.Join(group, "journal"), GroupID: [16]byte{1},
		TimelineID: [16]byte{2}, SegmentBytes: 1 << 20, FreeTarget: 1, StartOrdinal: 1}
	j, err := journal.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("PLANTED-journal-content."), 1<<12)[:4096]
	if _, _, err := j.Append(journal.Header{Kind: journal.KindWrite, Ordinal: j.Head() + 1}, data); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Sync(), j.Close()); err != nil {
		t.Fatal(err)
	}
	planted := map[string]string{"pool/groups/g-1/group.json": `{"name": "shop", "rpoTargetMillis": 5000}` + "\n"}
	for name, text := range plantedFiles(t, pool) {
		planted[name] = text
	}
	for name, text := range planted {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// plantedFiles are those of planted; the content of a volume goes into the image of one.
func plantedFiles(t *testing.T, pool string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for name, text := range planted {
		if name == "pool/volumes/image" {
			images, err := filepath.Glob(filepath.Join(pool, "volumes", "vol-1", "*"))
			if err != nil || len(images) == 0 {
				t.Fatalf("the pool has no image: %v", err)
			}
			for _, image := range images {
				if filepath.Ext(image) != ".json" {
					name, _ = filepath.Rel(filepath.Dir(pool), image)
				}
			}
		}
		files[name] = text
	}
	return files
}

// TestBundle: a bundle has status, settings, headers, metrics and logs, and nothing of what was planted: keys, tokens,
// contents of volumes and of the journal.
func TestBundle(t *testing.T) {
	dir := siteOf(t)
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	stop, err := serveFake(filepath.Join(run, "replicator.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	metrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "slipstream_pool_volumes 2\n")
	}))
	defer metrics.Close()
	defer http.DefaultClient.CloseIdleConnections()
	var out, messages bytes.Buffer
	c := &cli{&frame.CLI{Version: "v9", Out: &out, Err: &messages, Sidecar: "unix://" + run + "/replicator.sock",
		Output: frame.OutputJSON}}
	file := filepath.Join(dir, "b.tar.gz")
	cmd := c.bundleCommand()
	args := []string{"--file", file, "--metrics", strings.TrimPrefix(metrics.URL, "http://") + ",127.0.0.1:1"}
	cmd.SetArgs(args)
	cmd.SetContext(t.Context())
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	files := unpackBundle(t, file)
	for name, want := range map[string]string{
		"about.json":              `"slipctl": "v9"`,
		"groups.json":             `"stateReason": "the first copy is running"`,
		"views.json":              `views`,
		"volumes.json":            `"vol-1"`,
		"groups/g-1/group.json":   `"rpoTargetMillis": 5000`,
		"groups/g-1/journal.json": `"type":"segment"`,
		"logs/replicator.log":     "I1128 12:00:01 serves",
		"problems.txt":            "metrics of 127.0.0.1:1: ",
		"metrics/127.0.0.1-" + metrics.URL[strings.LastIndex(metrics.URL, ":")+1:] + ".txt": "slipstream_pool_volumes 2",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %s: %s", name, want, files[name])
		}
	}
	if len(files) != 9 {
		t.Errorf("%d files", len(files))
	}
	for name, text := range files {
		if i := strings.Index(text, "PLANTED"); i >= 0 {
			t.Errorf("%s has a secret: %s", name, text[max(i-40, 0):min(i+60, len(text))])
		}
	}
	var said struct {
		File     string   `json:"file"`
		Files    int      `json:"files"`
		Problems []string `json:"problems"`
	}
	if err := json.Unmarshal(out.Bytes(), &said); err != nil || said.File != file || said.Files != 9 ||
		len(said.Problems) != 1 {
		t.Errorf("%v: %s", err, out.String())
	}
	// A file that is there is not overwritten.
	cmd = c.bundleCommand()
	cmd.SetArgs(args)
	cmd.SetContext(t.Context())
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a second bundle: %v", err)
	}
}

// TestBundleOfDeadSite: without a replicator there is a bundle of what is on disk.
func TestBundleOfDeadSite(t *testing.T) {
	dir := siteOf(t)
	var out, messages bytes.Buffer
	c := &cli{&frame.CLI{Out: &out, Err: &messages, Sidecar: "unix://" + dir + "/run/replicator.sock",
		Output: frame.OutputTable}}
	c.Here.Pool = filepath.Join(dir, "pool")
	file := filepath.Join(dir, "b.tar.gz")
	if err := c.writeBundle(t.Context(), &bundled{file: file}); err != nil {
		t.Fatal(err)
	}
	files := unpackBundle(t, file)
	if !strings.Contains(files["problems.txt"], "groups and views") || files["groups/g-1/journal.json"] == "" ||
		!strings.Contains(messages.String(), "not in the bundle: groups and views") {
		t.Errorf("%v\n%s", files, messages.String())
	}
}

// unpackBundle returns the files of a bundle, without the directory.
func unpackBundle(t *testing.T, file string) map[string]string {
	t.Helper()
	archive, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	compressed, err := gzip.NewReader(archive)
	if err != nil {
		t.Fatal(err)
	}
	files, reader := map[string]string{}, tar.NewReader(compressed)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		dir, name, _ := strings.Cut(header.Name, "/")
		if !strings.HasPrefix(dir, "slipstream-bundle-") {
			t.Errorf("%s is in no directory of its own", header.Name)
		}
		files[name] = string(text)
	}
}

// ListViews of a site without views.
func (f *fakeSidecar) ListViews(context.Context,
	*sidecarpb.ListViewsRequest) (*sidecarpb.ListViewsResponse, error) {
	return &sidecarpb.ListViewsResponse{}, nil
}
