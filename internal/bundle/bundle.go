// Package bundle writes a support bundle: a tar.gz with texts that help to find a fault, without secrets.
//
// What is added passes Redact, and is cut at a limit. What could not be collected is in problems.txt: a bundle is
// needed most when something does not answer. Contents of volumes are never given to this package.
//
// A Writer is for one goroutine.
package bundle

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// maxFileBytes bounds one file of a bundle. Of a longer one, such as a log, the end is kept.
const maxFileBytes = 8 << 20

// Writer writes a bundle.
type Writer struct {
	dir      string
	now      time.Time
	gzip     *gzip.Writer
	tar      *tar.Writer
	problems []string
	names    map[string]bool
}

// New returns a Writer to w. All files are below the directory dir. Now is the time that they have.
func New(w io.Writer, dir string, now time.Time) *Writer {
	compressed := gzip.NewWriter(w)
	return &Writer{dir: dir, now: now, gzip: compressed, tar: tar.NewWriter(compressed), names: map[string]bool{}}
}

// Create writes a bundle with what collect adds, into a new file that only its owner may read. An empty name is
// slipstream-bundle-TIME.tar.gz in the current directory; "-" is out. It returns the name, also of a bundle that is not
// there because of an error.
func Create(file string, out io.Writer, collect func(*Writer) error) (*Writer, string, error) {
	now := time.Now().UTC()
	dir := "slipstream-bundle-" + now.Format("20060102-150405")
	if file == "-" {
		w := New(out, dir, now)
		if err := collect(w); err != nil {
			return w, file, err
		}
		return w, file, w.Close()
	}
	file = cmp.Or(file, dir+".tar.gz")
	to, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, file, fmt.Errorf("%s exists already: choose another --file", file)
	}
	if err != nil {
		return nil, file, err
	}
	w := New(to, dir, now)
	if err = collect(w); err == nil {
		err = w.Close()
	}
	if err := errors.Join(err, to.Close()); err != nil {
		return w, file, errors.Join(err, os.Remove(file))
	}
	return w, file, nil
}

// JSON adds a value as a file.
func (w *Writer) JSON(name string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		w.Problem(name, err)
		return nil
	}
	return w.Text(name, append(text, '\n'))
}

// Text adds a file without its secrets. A name that is there already gets a number.
func (w *Writer) Text(name string, text []byte) error { return w.add(name, Redact(tail(text))) }

// Bundle adds a file that is a bundle itself, which another Writer has made.
func (w *Writer) Bundle(name string, content []byte) error { return w.add(name, content) }

func (w *Writer) add(name string, content []byte) error {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for base, n := name, 2; w.names[name]; n++ {
		name = fmt.Sprintf("%s-%d%s", strings.TrimSuffix(base, path.Ext(base)), n, path.Ext(base))
	}
	w.names[name] = true
	header := &tar.Header{Name: path.Join(w.dir, name), Mode: 0o600, Size: int64(len(content)), ModTime: w.now,
		Typeflag: tar.TypeReg}
	if err := w.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.tar.Write(content)
	return err
}

// Problem notes what could not be collected, and why.
func (w *Writer) Problem(what string, err error) {
	w.problems = append(w.problems, fmt.Sprintf("%s: %v", what, err))
}

// Problems are those that were noted.
func (w *Writer) Problems() []string { return w.problems }

// Files is how many files there are.
func (w *Writer) Files() int { return len(w.names) }

// Close writes problems.txt, if there are any, and ends the bundle. It does not close the writer below.
func (w *Writer) Close() error {
	var err error
	if len(w.problems) > 0 {
		err = w.Text("problems.txt", []byte(strings.Join(w.problems, "\n")+"\n"))
	}
	return errors.Join(err, w.tar.Close(), w.gzip.Close())
}

// tail is the end of a long text, from the beginning of a line.
func tail(text []byte) []byte {
	if len(text) <= maxFileBytes {
		return text
	}
	text = text[len(text)-maxFileBytes:]
	if _, rest, ok := bytes.Cut(text, []byte("\n")); ok {
		text = rest
	}
	return append([]byte("(the beginning is left out)\n"), text...)
}
