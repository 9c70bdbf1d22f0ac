package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Odd is something that may have a file's name and is not what was written there.
type Odd struct {
	Name string
	// Put makes it. There is nothing at path, and outside is an existing directory elsewhere.
	Put func(path, outside string) error
}

// Odds are all kinds of it.
var Odds = []Odd{
	{"FIFO", func(path, _ string) error { return unix.Mkfifo(path, 0o600) }},
	{"socket", func(path, _ string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) }},
	{"link to a file", func(path, outside string) error {
		target := filepath.Join(outside, "target of "+filepath.Base(path))
		if err := os.WriteFile(target, []byte("foreign"), 0o600); err != nil {
			return err
		}
		return os.Symlink(target, path)
	}},
	{"link to a directory", func(path, outside string) error { return os.Symlink(outside, path) }},
	{"link to nothing", func(path, outside string) error { return os.Symlink(filepath.Join(outside, "nothing"), path) }},
	{"directory", func(path, _ string) error {
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(path, "notes"), []byte("foreign"), 0o600)
	}},
	{"empty file", func(path, _ string) error { return os.WriteFile(path, nil, 0o600) }},
	{"other file", func(path, _ string) error { return os.WriteFile(path, []byte("foreign"), 0o600) }},
	{"huge file", func(path, _ string) error {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		return os.Truncate(path, 1<<40)
	}},
}

// Within fails the test if f hangs. The limit of a minute allows for a busy machine.
func Within(t TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s", fmt.Sprintf("%s hangs", what))
	}
}
