package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Fill takes all that is free on the file system that dir is on: blocks, to the last one, and files in dir for as long
// as one can be made. It returns a function that gives all of it back.
func Fill(t testing.TB, dir string) (empty func()) {
	t.Helper()
	var taken []string
	create := func() *os.File {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("zz-fill-%d", len(taken))))
		if err == nil {
			taken = append(taken, f.Name())
			return f
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return nil
	}
	if f := create(); f != nil {
		end := int64(0)
		for chunk := int64(1 << 30); chunk >= 512; {
			if err := unix.Fallocate(int(f.Fd()), 0, end, chunk); err != nil {
				chunk /= 2
				continue
			}
			end += chunk
		}
		f.Close()
	}
	for {
		f := create()
		if f == nil {
			break
		}
		_, _ = f.Write([]byte{1}) // a block, should one have come free
		f.Close()
	}
	return func() {
		for _, name := range taken {
			_ = os.Remove(name)
		}
	}
}
