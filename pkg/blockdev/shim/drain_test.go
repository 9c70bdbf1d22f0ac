package shim

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockdevtest"
)

// heldDevice holds its writes until it is told to go on.
type heldDevice struct {
	*blockdevtest.MemDevice
	entered chan struct{}
	release chan struct{}
}

func (d *heldDevice) WriteAt(p []byte, off int64) (int, error) {
	d.entered <- struct{}{}
	<-d.release
	return d.MemDevice.WriteAt(p, off)
}

// TestReadPassesGatheredWrites lets a reader take two writes and a read at once, over a socket in /dev/fuse's place,
// and holds the writes in the device: the read is answered meanwhile, with the content from before them, and spoils
// none of them.
func TestReadPassesGatheredWrites(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	dev := &heldDevice{blockdevtest.NewMemDevice(1 << 20), make(chan struct{}), make(chan struct{})}
	s := testServer(dev)
	s.fd = fds[0]

	data := [][]byte{bytes.Repeat([]byte{1}, pageSize), bytes.Repeat([]byte{2}, pageSize)}
	readBody := make([]byte, readInSize)
	native.PutUint32(readBody[16:], 64<<10)
	for _, frame := range [][]byte{
		request(opWrite, 101, fileNode, dataBody(0, pageSize, data[0])),
		request(opWrite, 102, fileNode, dataBody(8*pageSize, pageSize, data[1])),
		request(opRead, 103, fileNode, readBody),
	} {
		if err := unix.Sendto(fds[1], frame, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	buf, err := newBuffer(maxWriteBytes + gatherBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer freeBuffer(buf)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		r := reader{pool: &s.readers, s: s, gathered: gathered{buf: buf}}
		if served, ok := r.drain(false); served != 3 || !ok {
			t.Errorf("served %d, %t", served, ok)
		}
	}()
	reply := func() []byte {
		t.Helper()
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fds[1]), Events: unix.POLLIN}}, int(time.Minute.Milliseconds()))
		if err != nil || n != 1 {
			t.Fatalf("no reply: %d, %v", n, err)
		}
		b := make([]byte, pageSize+64<<10)
		n, err = unix.Read(fds[1], b)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n]
	}

	<-dev.entered
	errno, got := checkReply(t, reply(), 103)
	if errno != 0 || !bytes.Equal(got, make([]byte, 64<<10)) {
		t.Errorf("read beside held writes: %v, %d bytes", errno, len(got))
	}
	dev.release <- struct{}{}
	<-dev.entered
	dev.release <- struct{}{}
	for _, unique := range []uint64{101, 102} {
		if errno, _ := checkReply(t, reply(), unique); errno != 0 {
			t.Errorf("write %d: %v", unique, errno)
		}
	}
	<-drained
	for i, want := range data {
		got := make([]byte, pageSize)
		if _, err := dev.ReadAt(got, int64(8*i*pageSize)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("write %d was spoiled by the read: %v, begins with %d", i, err, got[0])
		}
	}
}
