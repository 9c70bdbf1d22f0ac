package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// faulty breaks one write of a file.
type faulty struct {
	*os.File
	writes, at int
	how        string
}

func (f *faulty) WriteAt(b []byte, offset int64) (int, error) {
	f.writes++
	if f.writes == f.at {
		switch f.how {
		case "lost":
			return len(b), nil
		case "flipped":
			b = bytes.Clone(b)
			b[len(b)-1] ^= 1
		case "elsewhere":
			offset = (offset + int64(len(b))) % (int64(len(b)) * 8)
		case "failed":
			return 0, errors.New("no such luck")
		}
	}
	return f.File.WriteAt(b, offset)
}

func TestLoad(t *testing.T) {
	for _, test := range []struct{ how, want string }{
		{"", ""},
		{"lost", "is not what was written"},
		{"flipped", "is not what was written"},
		{"elsewhere", "is not what was written"},
		{"failed", "no such luck"},
	} {
		t.Run(test.how, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// The last write of its block before the end: found by the final reading if by nothing else.
			l := newLoad(&faulty{File: f, at: 40, how: test.how}, 8, 512, 4, 7)
			err = nil
			for i := 0; i < 40 && err == nil; i++ {
				err = l.step()
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			var out strings.Builder
			if err == nil {
				err = l.run(ctx, &out)
			}
			switch {
			case test.want == "" && (err != nil || !strings.HasPrefix(out.String(), "done writes=40 ")):
				t.Errorf("%v, printed %q", err, out.String())
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "32Mi": 32 << 20, "1Gi": 1 << 30, "8Ki": 8 << 10} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	if _, err := parseSize("many"); err == nil {
		t.Error("many is a size")
	}
}
