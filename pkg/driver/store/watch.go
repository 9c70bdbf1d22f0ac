package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// watch tells which volumes' records may have changed, by inotify(7). The kernel queues an event before the system call
// that causes the event returns. The caller can be the driver, the replicator, an older version of either, or a person.
// So a reader that takes the queued events first sees every change that was complete when the reader began.
//
// The events come from the directory of all volumes, for volumes that come and go, and from each volume's directory,
// for its record. Writes to images cause no event.
//
// A watch is used by one goroutine at a time.
type watch struct {
	fd     int
	dir    string // of all volumes
	root   int32
	inode  inode // of dir
	ids    map[int32]string
	wds    map[string]int32
	buffer []byte
}

type inode struct{ device, number uint64 }

// rootEvents and volumeEvents are what a watch is told. IN_CLOSE_WRITE is for a record that is written in place, which
// this program never does.
const (
	rootEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF |
		unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	volumeEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE |
		unix.IN_ONLYDIR
	watchBufferBytes = 64 << 10
)

// errWatchEnded means that a watch does not see all changes any more: another watch has to be made.
var errWatchEnded = errors.New("the watched directory was moved, replaced or unmounted")

// newWatch watches the directory of all volumes. Volumes are watched from add on.
func newWatch(dir string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	w := &watch{fd: fd, dir: dir, ids: map[int32]string{}, wds: map[string]int32{},
		buffer: make([]byte, watchBufferBytes)}
	root, err := unix.InotifyAddWatch(fd, dir, rootEvents)
	if err == nil {
		w.root = int32(root)
		w.inode, err = inodeOf(dir)
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return w, nil
}

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return inode{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return inode{st.Dev, st.Ino}, nil
}

// add watches a volume's directory, also one that took the place of another. The record has to be read afterwards. An
// error that is not fs.ErrNotExist is most likely the limit of watches.
func (w *watch) add(id string) error {
	path := filepath.Join(w.dir, id)
	n, err := unix.InotifyAddWatch(w.fd, path, volumeEvents)
	if err != nil {
		w.forget(id)
		return &os.PathError{Op: "inotify_add_watch", Path: path, Err: err}
	}
	wd := int32(n)
	if old, ok := w.wds[id]; ok && old != wd {
		w.forget(id)
	}
	w.ids[wd], w.wds[id] = id, wd
	return nil
}

// forget ends the watch of a volume's directory.
func (w *watch) forget(id string) {
	if wd, ok := w.wds[id]; ok {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // fails for a directory that was removed
		delete(w.wds, id)
		delete(w.ids, wd)
	}
}

// changes takes the queued events and adds the ids of volumes whose records they concern to changed. all means that
// events were lost and every record may have changed. After an error, errWatchEnded for one, the watch is of no use.
func (w *watch) changes(changed map[string]bool) (all bool, err error) {
	if now, err := inodeOf(w.dir); err != nil || now != w.inode {
		return true, errors.Join(errWatchEnded, err)
	}
	for {
		n, err := unix.Read(w.fd, w.buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return all, nil
		case err != nil:
			return true, fmt.Errorf("read events of %s: %w", w.dir, err)
		}
		for events := w.buffer[:n]; len(events) >= unix.SizeofInotifyEvent; {
			wd, mask := int32(binary.NativeEndian.Uint32(events)), binary.NativeEndian.Uint32(events[4:])
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
			name, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:size], []byte{0})
			events = events[size:]
			switch {
			case mask&unix.IN_Q_OVERFLOW != 0:
				all = true
			case wd == w.root && mask&(unix.IN_IGNORED|unix.IN_UNMOUNT|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
				return true, errWatchEnded
			default:
				w.note(wd, mask, string(name), changed)
			}
		}
	}
}

// note adds the volume that an event concerns to changed.
func (w *watch) note(wd int32, mask uint32, name string, changed map[string]bool) {
	if wd == w.root {
		if blockdev.ValidateID(name) == nil { // other names are volumes that are being made or deleted
			changed[name] = true
		}
		return
	}
	id, known := w.ids[wd]
	if !known {
		return // of a directory that another one took the place of
	}
	if mask&unix.IN_IGNORED != 0 {
		delete(w.ids, wd)
		delete(w.wds, id)
		changed[id] = true
		return
	}
	if name == blockdev.RecordFile {
		changed[id] = true
	}
}

func (w *watch) close() error { return unix.Close(w.fd) }
