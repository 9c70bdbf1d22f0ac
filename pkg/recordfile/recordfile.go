// Package recordfile reads and writes the small files that say what a pool, a volume, a snapshot, a view or a group is.
// It is not a database: a record is one file, which is read and replaced as a whole.
//
// A record file is JSON of exactly this form, which jq and people can read but not write:
//
//	{"format":"slipstream-<kind>","version":1,"crc32c":"<8 hex digits>","body":
//	<the body, indented by two spaces>
//	}
//
// The CRC-32C (Castagnoli) covers the body's bytes as they stand in the file. A file that differs in a single byte from
// what Encode would write for its body is damaged. A higher version than this program's is refused and nothing in the
// file is touched: it is from a newer Slipstream.
//
// Beside each is its spare, <name>.tmp, into which the next version is written; see vfs.WriteFileAtomic. So a record is
// replaced without a block or an inode more, and a reader that opened it before reads it again should it find a mixture
// (Read does).
//
// Functions may be called concurrently. Readers take no lock. Writers of one file exclude each other by a lock of their
// own.
package recordfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// version is the newest version this program reads, and the one it writes.
const version = 1

// MaxBytes is how large a record file may be. Records that this program writes are far smaller.
const MaxBytes = 64 << 20

const formatPrefix = "slipstream-"

// CorruptError says that a file is not what was written to it.
type CorruptError struct {
	Path        string
	OffsetBytes int64 // where it went wrong, or -1 when only the whole can be judged
	Reason      string
}

func (e *CorruptError) Error() string {
	if e.OffsetBytes < 0 {
		return fmt.Sprintf("%s is damaged: %s", e.Path, e.Reason)
	}
	return fmt.Sprintf("%s is damaged at offset %d: %s", e.Path, e.OffsetBytes, e.Reason)
}

// NewerVersionError says that a file was written by a newer program. Nothing is wrong with it.
type NewerVersionError struct {
	Path    string
	Version int
}

func (e *NewerVersionError) Error() string {
	return fmt.Sprintf("%s has format version %d, this program knows up to %d: use the newer program again",
		e.Path, e.Version, version)
}

func header(kind string, body []byte) []byte {
	return fmt.Appendf(nil, "{\"format\":\"%s%s\",\"version\":%d,\"crc32c\":\"%08x\",\"body\":\n",
		formatPrefix, kind, version, crc32c.Sum(body))
}

const trailer = "\n}\n"

// Encode returns a record file's contents; the form is in the package comment. Kind is a word that tells record
// files apart ("volume", "pool", "group").
func Encode(kind string, body any) ([]byte, error) {
	text, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s record: %w", kind, err)
	}
	return append(append(header(kind, text), text...), trailer...), nil
}

// Decode reads a record file's contents into body, a pointer to a struct. Path is for the errors:
// *CorruptError, and *NewerVersionError. After an error the content of body is undefined.
func Decode(path, kind string, data []byte, body any) error {
	damaged := func(off int64, format string, args ...any) error {
		return &CorruptError{Path: path, OffsetBytes: off, Reason: fmt.Sprintf(format, args...)}
	}
	if len(data) == 0 {
		return damaged(0, "the file is empty")
	}
	var envelope struct {
		Format  string          `json:"format"`
		Version int             `json:"version"`
		CRC32C  string          `json:"crc32c"`
		Body    json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(data, &envelope); err != nil {
		off := int64(-1)
		var syntax *json.SyntaxError
		var wrongType *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			off = syntax.Offset
		case errors.As(err, &wrongType):
			off = wrongType.Offset
		}
		return damaged(off, "%v (%d bytes; a short file was cut)", err, len(data))
	}
	if got := strings.TrimPrefix(envelope.Format, formatPrefix); got != kind || got == envelope.Format {
		return damaged(0, "format is %q, want %q", envelope.Format, formatPrefix+kind)
	}
	if envelope.Version > version {
		return &NewerVersionError{Path: path, Version: envelope.Version}
	}
	// Comparing with what would have been written covers the header as well, which the CRC does not.
	head := header(kind, envelope.Body)
	want := append(append(bytes.Clone(head), envelope.Body...), trailer...)
	if !bytes.Equal(data, want) {
		off := 0
		for off < min(len(data), len(want)) && data[off] == want[off] {
			off++
		}
		if off < len(head) && envelope.CRC32C != fmt.Sprintf("%08x", crc32c.Sum(envelope.Body)) {
			return damaged(-1, "its CRC-32C is %s, its body's is %08x", envelope.CRC32C, crc32c.Sum(envelope.Body))
		}
		return damaged(int64(off), "not written by this program; records cannot be edited by hand")
	}
	dec := json.NewDecoder(bytes.NewReader(envelope.Body))
	// A field that is not known would be lost when the record is written again.
	dec.DisallowUnknownFields()
	if err := dec.Decode(body); err != nil {
		return damaged(int64(len(head)), "%v", err)
	}
	return nil
}

// Read reads a record file; errors are those of Decode, or of reading it.
func Read(fs vfs.FS, path, kind string, body any) error {
	return ReadStable(fs, path, func(data []byte) error { return Decode(path, kind, data, body) })
}

// AsCorrupt makes a *CorruptError of what is said of a file that cannot be the one that was written.
func AsCorrupt(err error) error {
	var unfit *vfs.UnfitError
	if errors.As(err, &unfit) {
		return &CorruptError{Path: unfit.Path, OffsetBytes: -1, Reason: unfit.Reason}
	}
	return err
}

// OnlyCorrupt reports whether an error, joined of others or not, says nothing but that files are damaged.
func OnlyCorrupt(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(err error) bool { return !OnlyCorrupt(err) })
	}
	var corrupt *CorruptError
	return errors.As(err, &corrupt)
}

// maxReads bounds how often a record is read that others replace meanwhile.
const maxReads = 100

// ReadStable reads a file and decodes it. A *CorruptError counts when the file is read twice and is the same: a file
// that was opened before it was replaced may be written to while it is read (see vfs.WriteFileAtomic).
func ReadStable(fsys vfs.FS, path string, decode func(data []byte) error) error {
	var before []byte
	for n := 0; ; n++ {
		data, err := vfs.ReadFile(fsys, path, MaxBytes)
		if err != nil {
			return AsCorrupt(err)
		}
		err = decode(data)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || n > 0 && bytes.Equal(data, before) || n == maxReads {
			return err
		}
		before = data
	}
}

// Write replaces a record file atomically and durably; see vfs.WriteFileAtomic, also for what it needs no space
// for.
func Write(fs vfs.FS, path, kind string, body any) error {
	data, err := Encode(kind, body)
	if err != nil {
		return err
	}
	return vfs.WriteFileAtomic(fs, path, data)
}
