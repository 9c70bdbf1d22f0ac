package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// Each secret goes, and what surrounds it stays.
func TestRedact(t *testing.T) {
	const certificate = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----"
	const key = "MC4CAQAwBQYDK2VwBCIEIPLANTEDplantedPLANTED"
	for text, want := range map[string]string{
		"a\n-----BEGIN PRIVATE KEY-----\n" + key + "\n-----END PRIVATE KEY-----\nb": "a\n-----BEGIN PRIVATE KEY-----" + Left +
			"\nb",
		`{"k":"-----BEGIN EC PRIVATE KEY-----\n` + key + `\n-----END EC PRIVATE KEY-----\n","v":1}`: `{"k":"-----BEGIN EC ` +
			`PRIVATE KEY-----` + Left + `\n","v":1}`,
		"-----BEGIN RSA PRIVATE KEY-----\n" + key:                  "-----BEGIN RSA PRIVATE KEY-----" + Left,
		key + "\n-----END PRIVATE KEY-----\nlater":                 Left + "\nlater",
		"Authorization: Bearer PLANTED-token.1234":                 "Authorization: Bearer " + Left,
		"x eyJhbGciOiJSUzI1NiJ9.eyJQTEFOVEVEIjoxfQ.c2lnUExBTlRFRA": "x " + Left,
		`password: PLANTED`:                                        `password: ` + Left,
		`--token=PLANTED --v=4`:                                    `--token=` + Left + ` --v=4`,
		`{"token":"PLANTED \" PLANTED","a":1}`:                     `{"token":` + Left + `,"a":1}`,
		`tls.key: PLANTEDPLANTED=`:                                 `tls.key: ` + Left,
		`https://user:PLANTED@example.com/x`:                       `https://` + Left + `example.com/x`,
		// What is no secret stays.
		`tokenSecret: readers`:              `tokenSecret: readers`,
		certificate:                         certificate,
		`lag 15.9 s, timeline 3f1c0a9b77de`: `lag 15.9 s, timeline 3f1c0a9b77de`,
	} {
		got := string(Redact([]byte(text)))
		if got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
		if strings.Contains(got, "PLANTED") {
			t.Errorf("%q still has the secret", got)
		}
	}
}

// What cannot be collected is said in the bundle; a long file has its end; a name is not used twice, and does not
// leave the directory.
func TestWriter(t *testing.T) {
	var out bytes.Buffer
	w := New(&out, "bundle", time.Unix(1_800_000_000, 0))
	long := strings.Repeat("line\n", maxFileBytes/4) + "the end\n"
	for _, f := range []struct{ name, text string }{{"a.log", "one"}, {"a.log", "two"}, {"../../etc/x", "three"},
		{"long.log", long}} {
		if err := w.Text(f.name, []byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	w.Problem("metrics", errors.New("connection refused, token=PLANTED"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	for name, want := range map[string]string{"bundle/a.log": "one", "bundle/a-2.log": "two", "bundle/etc/x": "three",
		"bundle/problems.txt": "metrics: connection refused, token=" + Left + "\n"} {
		if files[name] != want {
			t.Errorf("%s is %q, want %q", name, files[name], want)
		}
	}
	if l := files["bundle/long.log"]; !strings.HasPrefix(l, "(the beginning is left out)\nline\n") ||
		!strings.HasSuffix(l, "line\nthe end\n") || len(l) > maxFileBytes+100 {
		t.Errorf("the long file has %d bytes", len(l))
	}
	if len(files) != 5 {
		t.Errorf("%d files", len(files))
	}
}

func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	compressed, err := gzip.NewReader(bytes.NewReader(archive))
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
		files[header.Name] = string(text)
	}
}
