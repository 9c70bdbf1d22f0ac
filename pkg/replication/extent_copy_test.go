package replication

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// newExtentCopy makes an image of a size, and begins the copy of it.
func newExtentCopy(t *testing.T, fs vfs.FS, size int64) *extentCopy {
	t.Helper()
	image, err := fs.Create("/image")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(bytes.Repeat([]byte{7}, int(size)), 0); err != nil {
		t.Fatal(err)
	}
	c := &extentCopy{}
	if err := c.create(fs, extentCopyPaths{source: "/image", dest: "/copy", log: "/log"}, size); err != nil {
		t.Fatal(err)
	}
	return c
}

// A snapshot is released while apply makes durable what it has copied for it: the files close behind that.
func TestCloseOfACopyWaitsForItsFlush(t *testing.T) {
	const size = 2 * changemap.ExtentBytes
	syncing, goOn := make(chan struct{}), make(chan struct{})
	held := false
	fs := vfs.NewErrFS(vfs.NewMem(), func(op vfs.Op, name string) error {
		if op == vfs.OpDatasync && name == "/log" && held {
			close(syncing)
			<-goOn
		}
		return nil
	})
	c := newExtentCopy(t, fs, size)
	held = true
	preserved, closed := make(chan error, 1), make(chan struct{})
	go func() {
		first := changemap.New()
		first.Mark(0, 0, changemap.ExtentBytes)
		preserved <- c.preserve(first)
	}()
	<-syncing
	go func() {
		c.close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Error("the files were closed while an extent was made durable in them")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-preserved; err != nil {
		t.Errorf("preserve: %v", err)
	}
	<-closed
}

// The copier has copied an extent, and the disk fails as it is made durable. Apply, which is about to change that
// extent and one behind it, has both in the log when it goes on, whatever the copier does next.
func TestApplyBesideAFailingFlush(t *testing.T) {
	const size = 2 * changemap.ExtentBytes
	flush := func(c *extentCopy) error { return c.flush() }
	for _, tc := range []struct {
		op   vfs.Op
		name string
		do   func(c *extentCopy) error // of the copier
	}{
		{vfs.OpWriteOut, "/copy", func(c *extentCopy) error { return c.writeOut(0, 1) }},
		{vfs.OpDatasync, "/copy", flush}, {vfs.OpWrite, "/log", flush}, {vfs.OpDatasync, "/log", flush},
	} {
		t.Run(string(tc.op)+tc.name, func(t *testing.T) {
			lost := errors.New("lost")
			failing, copied := make(chan struct{}), make(chan struct{}, 1)
			var armed, held atomic.Bool
			mem := vfs.NewMem()
			fs := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
				switch {
				case op == tc.op && name == tc.name && armed.CompareAndSwap(true, false):
					held.Store(true)
					close(failing)
					select {
					case <-copied: // apply does not wait for this flush
					case <-time.After(50 * time.Millisecond):
					}
					return lost
				case op == vfs.OpWrite && name == "/copy" && held.CompareAndSwap(true, false):
					copied <- struct{}{}
				}
				return nil
			})
			c := newExtentCopy(t, fs, size)
			defer c.close()
			c.mu.Lock()
			err := c.copyTodo(0, 1)
			c.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			armed.Store(true)
			failed := make(chan error, 1)
			go func() { failed <- tc.do(c) }()
			<-failing
			both := changemap.New()
			both.Mark(0, 0, size)
			if err := c.preserve(both); err != nil {
				t.Fatal(err)
			}
			if err := <-failed; !errors.Is(err, lost) {
				t.Fatalf("the copier: %v", err)
			}
			log, logged, err := changemap.OpenLog(mem, "/log")
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			if logged.Len() != both.Len() {
				t.Errorf("%d of %d extents are logged, and change in the image", logged.Len(), both.Len())
			}
		})
	}
}

// TestSnapshotCopyWritesOut: the copier has each run written to the disk before the next one, so that apply, which
// waits for a flush of the copy, never waits for more. If that fails, what is not logged is to do again.
func TestSnapshotCopyWritesOut(t *testing.T) {
	const size = 3 * copyRunExtents * changemap.ExtentBytes
	var failure error
	waiting := 0
	fs := vfs.NewErrFS(vfs.NewMem(), func(op vfs.Op, name string) error {
		switch {
		case name != "/copy/image":
		case op == vfs.OpWrite:
			waiting++
		case op == vfs.OpWriteOut:
			waiting = 0
			return failure
		}
		return nil
	})
	image, err := fs.Create("/image")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(bytes.Repeat([]byte{7}, size), 0); err != nil {
		t.Fatal(err)
	}
	if err := fs.MkdirAll("/copy"); err != nil {
		t.Fatal(err)
	}
	target := cutTarget{SnapshotID: "s", SizeBytes: size}
	c, err := createCopy(fs, "/copy", "/image", target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for range 2 {
		if done, err := c.step(t.Context()); done || err != nil {
			t.Fatalf("done %v, %v", done, err)
		}
		if waiting > 0 {
			t.Fatalf("%d writes wait for the disk", waiting)
		}
	}
	failure = errors.New("lost")
	if done, err := c.step(t.Context()); !done || err != nil {
		t.Fatalf("done %v, %v", done, err)
	}
	if _, failed := c.progress(); !errors.Is(failed, failure) {
		t.Errorf("failed: %v", failed)
	}
	if todo := c.todo.Bytes(); todo != size {
		t.Errorf("%d bytes are to do, and nothing is logged", todo)
	}
}
