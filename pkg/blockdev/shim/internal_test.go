package shim

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockdevtest"
)

// TestBufferIsResident checks that no page of a fresh buffer has to be faulted in.
func TestBufferIsResident(t *testing.T) {
	b, err := newBuffer(maxWriteBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer freeBuffer(b)
	resident := make([]byte, len(b)/pageSize)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for i, r := range resident {
		if r&1 == 0 {
			t.Fatalf("page %d of %d is not resident", i, len(resident))
		}
	}
}

func validState() State {
	return State{
		VolumeID:      "vol",
		MountPoint:    "/run/slipstream/vol",
		Mode:          ModeAck,
		Device:        "0:42",
		ProtoMinor:    protoMinor,
		Flags:         initHasResend | initExt,
		MaxWriteBytes: maxWriteBytes,
		FileSizeBytes: FileSize,
	}
}

func TestState(t *testing.T) {
	b, err := validState().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseState(b)
	if err != nil || got != validState() {
		t.Fatalf("got %+v, %v", got, err)
	}
	// What a release left that answered before writes were durable is taken over, and not handed back.
	old := bytes.Replace(b, []byte(`"version":2`), []byte(`"version":1`), 1)
	if got, err := ParseState(old); err != nil || got != validState() || bytes.Equal(old, b) {
		t.Errorf("an earlier release's state: %+v, %v", got, err)
	}
	for name, bad := range map[string]func(st *State){
		"no id":           func(st *State) { st.VolumeID = "" },
		"id with newline": func(st *State) { st.VolumeID = "a\nb" },
		"relative":        func(st *State) { st.MountPoint = "run" },
		"not clean":       func(st *State) { st.MountPoint = "/run/../etc" },
		"mode":            func(st *State) { st.Mode = 2 },
		"device":          func(st *State) { st.Device = "0:42/../.." },
		"minor":           func(st *State) { st.ProtoMinor = 31 },
		"no resend":       func(st *State) { st.Flags = initExt },
		"max write":       func(st *State) { st.MaxWriteBytes = 1 << 21 },
		"small max write": func(st *State) { st.MaxWriteBytes = 100 },
		"file size":       func(st *State) { st.FileSizeBytes = -4096 },
	} {
		st := validState()
		bad(&st)
		if _, err := st.Marshal(); err == nil {
			t.Errorf("%s: marshalled", name)
		}
	}
	otherMode := string(bytes.Replace(b, []byte(`"ack"`), []byte(`"sync"`), 1))
	for _, text := range []string{"", "null", "{}", `{"version":2}`, string(b[:len(b)-1]), otherMode} {
		if _, err := ParseState([]byte(text)); err == nil {
			t.Errorf("parsed %q", text)
		}
	}
}

func FuzzParseState(f *testing.F) {
	b, err := validState().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"mode":"flush"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := ParseState(b)
		if err != nil {
			return
		}
		again, err := st.Marshal()
		if err != nil {
			t.Fatalf("parsed %q and cannot marshal it: %v", b, err)
		}
		if st2, err := ParseState(again); err != nil || st2 != st {
			t.Fatalf("%+v became %+v: %v", st, st2, err)
		}
	})
}

// testServer is a Server without a connection.
func testServer(dev blockdev.Device) *Server {
	st := validState()
	st.Mode = ModeFlush
	return newServer(nil, st, Config{}, dev)
}

// request builds a request frame as the kernel does.
func request(opcode uint32, unique, node uint64, body []byte) []byte {
	b := make([]byte, inHeaderSize+len(body))
	native.PutUint32(b[0:], uint32(len(b)))
	native.PutUint32(b[4:], opcode)
	native.PutUint64(b[8:], unique)
	native.PutUint64(b[16:], node)
	copy(b[inHeaderSize:], body)
	return b
}

// serve runs one request through the server's decoder and returns the reply, nil if there is none.
func serve(s *Server, frame []byte) []byte {
	buf := make([]byte, dataOffset+maxWriteBytes)
	n := copy(buf[requestOffset:], frame)
	h, body, ok := parseInHeader(buf[requestOffset : requestOffset+n])
	if !ok {
		return nil
	}
	if h.opcode == opWrite {
		g := gathered{buf: buf}
		g.gather(s, h, body)
		g.execute(s)
		return writeReply(buf, g.writes[0].unique, g.writes[0].size, g.writes[0].errno)
	}
	if h.opcode == opFsync {
		var out []byte
		s.fsync(h, func(_ inHeader, b []byte) { out = bytes.Clone(b) })
		return out
	}
	return buf[replyOffset : replyOffset+s.handle(h, body, buf)]
}

// stubbornDevice fails the writes to one offset.
type stubbornDevice struct {
	*blockdevtest.MemDevice
	bad   int64
	batch int // the longest
}

func (d *stubbornDevice) WriteAt(p []byte, off int64) (int, error) {
	if off == d.bad {
		return 0, unix.ENOSPC
	}
	return d.MemDevice.WriteAt(p, off)
}

// batchDevice is one that takes batches.
type batchDevice struct{ *stubbornDevice }

func (d batchDevice) WriteBatch(writes []blockdev.Write) (int, error) {
	d.batch = max(d.batch, len(writes))
	for i, w := range writes {
		if _, err := d.WriteAt(w.Data, w.Off); err != nil {
			return i, err
		}
	}
	return len(writes), nil
}

// TestGather runs several writes through one reader and checks each answer and the content: with an error at every
// place, on Devices that take batches and that do not.
func TestGather(t *testing.T) {
	const size, count = 1 << 20, 12
	for bad := -1; bad <= count; bad++ {
		for _, batches := range []bool{false, true} {
			mem := &stubbornDevice{MemDevice: blockdevtest.NewMemDevice(size), bad: int64(bad) * pageSize}
			var dev blockdev.Device = mem
			if batches {
				dev = batchDevice{mem}
			}
			s := testServer(dev)
			buf := make([]byte, dataOffset+maxWriteBytes+gatherBytes)
			r := gathered{buf: buf}
			for i := range count {
				data := bytes.Repeat([]byte{byte(i + 1)}, pageSize)
				off := uint64(i * pageSize)
				if i == 5 {
					off = 1 << 40 // outside: refused alone
				}
				at := r.next()
				if at%pageSize != 0 || r.full(maxWriteBytes) {
					t.Fatalf("the data of write %d would begin at %d of %d", i, at, len(buf))
				}
				n := copy(buf[at-requestHead:], request(opWrite, uint64(100+i), fileNode, dataBody(off, pageSize, data)))
				h, body, _ := parseInHeader(buf[at-requestHead:][:n])
				r.gather(s, h, body)
			}
			r.execute(s)
			for i := range count {
				want := unix.Errno(0)
				switch {
				case i == 5:
					want = unix.EFBIG
				case bad >= 0 && bad != 5 && i >= bad:
					want = unix.ENOSPC
				}
				w := &r.writes[i]
				if errno, _ := checkReply(t, writeReply(buf, w.unique, w.size, w.errno), uint64(100+i)); errno != want {
					t.Errorf("error at %d, batches %t: write %d got %v, want %v", bad, batches, i, errno, want)
				}
				got := make([]byte, pageSize)
				if _, err := dev.ReadAt(got, int64(i*pageSize)); err != nil {
					t.Fatal(err)
				}
				if filled := got[0] == byte(i+1) && got[pageSize-1] == byte(i+1); filled != (want == 0) {
					t.Errorf("error at %d, batches %t: write %d is there: %t", bad, batches, i, filled)
				}
			}
			if batches && mem.batch != count-1 {
				t.Errorf("the longest batch had %d writes", mem.batch)
			}
		}
	}
}

// TestGatherIsBounded fills a reader's buffer with the smallest writes and the largest.
func TestGatherIsBounded(t *testing.T) {
	for _, n := range []int{1, pageSize, maxWriteBytes} {
		buf := make([]byte, dataOffset+maxWriteBytes+gatherBytes)
		s := testServer(blockdevtest.NewMemDevice(1 << 30))
		r := gathered{buf: buf}
		for !r.full(maxWriteBytes) {
			// What the kernel demands of the buffer for any read.
			if len(buf)-(r.next()-requestHead) < requestHead+maxWriteBytes {
				t.Fatalf("writes of %d bytes: no room for the largest request after %d", n, len(r.writes))
			}
			frame := request(opWrite, 2, fileNode, dataBody(0, uint32(n), make([]byte, n)))
			at := r.next()
			copy(buf[at-requestHead:], frame)
			h, body, _ := parseInHeader(buf[at-requestHead:][:len(frame)])
			r.gather(s, h, body)
		}
		if len(r.writes) == 0 {
			t.Errorf("not even one write of %d bytes", n)
		}
	}
}

func dataBody(off uint64, size uint32, data []byte) []byte {
	b := make([]byte, writeInSize+len(data))
	native.PutUint64(b[8:], off)
	native.PutUint32(b[16:], size)
	copy(b[writeInSize:], data)
	return b
}

func fallocateBody(off, n uint64, mode uint32) []byte {
	b := make([]byte, fallocateInSize)
	native.PutUint64(b[8:], off)
	native.PutUint64(b[16:], n)
	native.PutUint32(b[24:], mode)
	return b
}

// checkReply checks a reply's header and returns its error and body.
func checkReply(t interface{ Fatalf(string, ...any) }, b []byte, unique uint64) (unix.Errno, []byte) {
	if len(b) < outHeaderSize || int(native.Uint32(b)) != len(b) || native.Uint64(b[8:]) != unique {
		t.Fatalf("reply %x is not one to %#x", b[:min(len(b), 16)], unique)
	}
	return unix.Errno(-int32(native.Uint32(b[4:]))), b[outHeaderSize:]
}

// TestResentRequests serves random writes, discards and reads, each perhaps twice as after a resend, and compares
// with a model.
func TestResentRequests(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 64 << 10
		dev := blockdevtest.NewMemDevice(size)
		s := testServer(dev)
		model := make([]byte, size)
		unique := uint64(2)
		for range rapid.IntRange(1, 30).Draw(t, "operations") {
			unique += 2
			off := rapid.IntRange(0, size-1).Draw(t, "off")
			n := rapid.IntRange(1, size-off).Draw(t, "n")
			var frame, want []byte
			id := unique
			switch rapid.SampledFrom([]string{"write", "discard", "zero", "read"}).Draw(t, "op") {
			case "write":
				data := bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, n)
				copy(model[off:], data)
				frame = request(opWrite, id, fileNode, dataBody(uint64(off), uint32(n), data))
				want = native.AppendUint64(nil, uint64(n))
			case "discard":
				clear(model[off : off+n])
				frame = request(opFallocate, id, fileNode, fallocateBody(uint64(off), uint64(n), fallocPunchHole|fallocKeepSize))
			case "zero":
				clear(model[off : off+n])
				frame = request(opFallocate, id, fileNode, fallocateBody(uint64(off), uint64(n), fallocZeroRange|fallocKeepSize))
			case "read":
				frame = request(opRead, id, fileNode, dataBody(uint64(off), uint32(n), nil))
				want = model[off : off+n]
			}
			for range 1 + rapid.IntRange(0, 1).Draw(t, "resent") {
				errno, body := checkReply(t, serve(s, frame), id)
				if errno != 0 || !bytes.Equal(body, want) {
					t.Fatalf("opcode %d at %d of %d bytes: %v, body of %d bytes", native.Uint32(frame[4:]), off, n, errno, len(body))
				}
				id |= 1 << 63 // FUSE_UNIQUE_RESEND
				native.PutUint64(frame[8:], id)
			}
		}
		got := make([]byte, size)
		if _, err := dev.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
			t.Fatalf("content differs: %v", err)
		}
	})
}

// TestRequests checks single requests at the edges.
func TestRequests(t *testing.T) {
	const size = 8192 + 512
	setattr := func(valid uint32, size uint64) []byte {
		b := make([]byte, setattrInSize)
		native.PutUint32(b, valid)
		native.PutUint64(b[16:], size)
		return b
	}
	for _, c := range []struct {
		name  string
		frame []byte
		errno unix.Errno
		bytes int // of the reply's body
	}{
		{"lookup", request(opLookup, 2, rootNode, []byte("volume\x00")), 0, entryOutSize},
		{"lookup other", request(opLookup, 2, rootNode, []byte("volumes\x00")), unix.ENOENT, 0},
		{"lookup in file", request(opLookup, 2, fileNode, []byte("volume\x00")), unix.ENOTDIR, 0},
		{"getattr", request(opGetattr, 2, fileNode, nil), 0, attrOutSize},
		{"getattr unknown", request(opGetattr, 2, 99, nil), unix.ENOENT, 0},
		{"setattr time", request(opSetattr, 2, fileNode, setattr(setattrMtime, 0)), 0, attrOutSize},
		{"setattr same size", request(opSetattr, 2, fileNode, setattr(setattrSize, FileSize)), 0, attrOutSize},
		{"truncate", request(opSetattr, 2, fileNode, setattr(setattrSize, 0)), unix.EPERM, 0},
		{"chmod", request(opSetattr, 2, fileNode, setattr(setattrMode, 0)), unix.EPERM, 0},
		{"short setattr", request(opSetattr, 2, fileNode, make([]byte, 8)), unix.EINVAL, 0},
		{"open", request(opOpen, 2, fileNode, make([]byte, 8)), 0, openOutSize},
		{"open directory", request(opOpen, 2, rootNode, make([]byte, 8)), unix.EISDIR, 0},
		{"opendir", request(opOpendir, 2, rootNode, make([]byte, 8)), 0, openOutSize},
		{"opendir of file", request(opOpendir, 2, fileNode, make([]byte, 8)), unix.ENOTDIR, 0},
		{"readdir", request(opReaddir, 2, rootNode, dataBody(0, 4096, nil)), 0, 3 * 32},
		{"readdir rest", request(opReaddir, 2, rootNode, dataBody(2, 4096, nil)), 0, 32},
		{"readdir end", request(opReaddir, 2, rootNode, dataBody(3, 4096, nil)), 0, 0},
		{"readdir little room", request(opReaddir, 2, rootNode, dataBody(0, 40, nil)), 0, 32},
		{"statfs", request(opStatfs, 2, rootNode, nil), 0, statfsOutSize},
		{"flush", request(opFlush, 2, fileNode, make([]byte, 24)), 0, 0},
		{"fsync", request(opFsync, 2, fileNode, make([]byte, fsyncInSize)), 0, 0},
		{"lseek", request(opLseek, 2, fileNode, make([]byte, 24)), unix.ENOSYS, 0},
		{"unknown", request(4711, 2, fileNode, nil), unix.ENOSYS, 0},
		{"second init", request(opInit, 2, 0, make([]byte, 64)), unix.ENOSYS, 0},
		{"read all", request(opRead, 2, fileNode, dataBody(0, size, nil)), 0, size},
		{"read across the end", request(opRead, 2, fileNode, dataBody(8192, 4096, nil)), 0, 4096},
		{"read behind the end", request(opRead, 2, fileNode, dataBody(1<<40, maxWriteBytes, nil)), 0, maxWriteBytes},
		{"read too much", request(opRead, 2, fileNode, dataBody(0, maxWriteBytes+1, nil)), unix.EINVAL, 0},
		{"read far away", request(opRead, 2, fileNode, dataBody(1<<63, 1, nil)), unix.EINVAL, 0},
		{"short read", request(opRead, 2, fileNode, make([]byte, 8)), unix.EINVAL, 0},
		{"write", request(opWrite, 2, fileNode, dataBody(0, 3, []byte("abc"))), 0, writeOutSize},
		{"write the last page", request(opWrite, 2, fileNode, dataBody(8192, 4096, make([]byte, 4096))), 0, writeOutSize},
		{"write behind", request(opWrite, 2, fileNode, dataBody(12288, 1, []byte("a"))), unix.EFBIG, 0},
		{"write across", request(opWrite, 2, fileNode, dataBody(8192, 4097, make([]byte, 4097))), unix.EFBIG, 0},
		{"write far away", request(opWrite, 2, fileNode, dataBody(1<<64-1, 1, []byte("a"))), unix.EINVAL, 0},
		{"write says more", request(opWrite, 2, fileNode, dataBody(0, 4, []byte("abc"))), unix.EINVAL, 0},
		{"discard all", request(opFallocate, 2, fileNode, fallocateBody(0, FileSize, fallocPunchHole|fallocKeepSize)), 0, 0},
		{"discard behind", request(opFallocate, 2, fileNode, fallocateBody(1<<40, 4096, fallocPunchHole|fallocKeepSize)), 0,
			0},
		{"discard too far", request(opFallocate, 2, fileNode, fallocateBody(FileSize, 1, fallocPunchHole|fallocKeepSize)),
			unix.EFBIG, 0},
		{"collapse", request(opFallocate, 2, fileNode, fallocateBody(0, 4096, 0x08)), unix.EOPNOTSUPP, 0},
		{"preallocate", request(opFallocate, 2, fileNode, fallocateBody(0, 4096, 0)), 0, 0},
		{"short fallocate", request(opFallocate, 2, fileNode, nil), unix.EINVAL, 0},
	} {
		errno, body := checkReply(t, serve(testServer(blockdevtest.NewMemDevice(size)), c.frame), 2)
		if errno != c.errno || len(body) != c.bytes {
			t.Errorf("%s: errno %d and %d bytes, want %d and %d", c.name, errno, len(body), c.errno, c.bytes)
		}
	}
	for _, opcode := range []uint32{opForget, opBatchForget, opInterrupt} {
		s := testServer(blockdevtest.NewMemDevice(size))
		if b := serve(s, request(opcode, 2, fileNode, make([]byte, 16))); len(b) != 0 {
			t.Errorf("opcode %d was answered", opcode)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(request(opWrite, 2, fileNode, dataBody(0, 3, []byte("abc"))))
	f.Add(request(opRead, 2, fileNode, dataBody(4096, 8192, nil)))
	f.Add(request(opFallocate, 2, fileNode, fallocateBody(0, 4096, fallocPunchHole|fallocKeepSize)))
	f.Add(request(opReaddir, 2, rootNode, dataBody(0, 4096, nil)))
	f.Add(request(opSetattr, 2, fileNode, make([]byte, setattrInSize)))
	f.Add(request(opLookup, 2, rootNode, []byte("volume\x00")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > 64<<10 {
			return
		}
		dev := blockdevtest.NewMemDevice(64 << 10)
		b := serve(testServer(dev), frame)
		if len(b) == 0 {
			return
		}
		checkReply(t, b, native.Uint64(frame[8:]))
		if len(b) > outHeaderSize+maxWriteBytes {
			t.Fatalf("a reply of %d bytes", len(b))
		}
	})
}

// outOfRangeDevice grows smaller between Size and the call, as none should.
type outOfRangeDevice struct{ blockdev.Device }

func (outOfRangeDevice) Size() int64 { return 1 << 20 }

func TestDeviceThatDisagreesAboutItsSize(t *testing.T) {
	s := testServer(outOfRangeDevice{blockdevtest.NewMemDevice(4096)})
	errno, _ := checkReply(t, serve(s, request(opWrite, 2, fileNode, dataBody(8192, 1, []byte("a")))), 2)
	if !errors.Is(errno, unix.EFBIG) {
		t.Fatalf("got %v", errno)
	}
}

// TestOneReaderStays runs the readers' accounting as run does, without a connection, and checks that they never all
// end.
func TestOneReaderStays(t *testing.T) {
	var p readerPool
	var alive atomic.Int32
	var requests atomic.Int64
	const total = 300_000
	var wg sync.WaitGroup
	var reader func()
	spawn := func() {
		alive.Add(1)
		p.idle.Add(1)
		wg.Add(1)
		go reader()
	}
	reader = func() {
		defer wg.Done()
		for requests.Add(1) < total {
			if p.idle.Add(-1) == 0 {
				spawn()
			}
			runtime.Gosched() // the request
			if !stayIdle(&p.idle, maxIdleReaders) {
				alive.Add(-1)
				return
			}
		}
	}
	spawn()
	wg.Wait()
	if requests.Load() < total || alive.Load() == 0 {
		t.Fatalf("after %d requests no reader was left", requests.Load())
	}
}

// TestSpareBuffers: buffers are used again by requests of that size, and no more are kept than a few.
func TestSpareBuffers(t *testing.T) {
	var p spares
	var taken [][]byte
	for range maxSpareBuffers + 3 {
		b, err := p.get(pageSize)
		if err != nil {
			t.Fatal(err)
		}
		b[0] = 1 // it is there
		taken = append(taken, b)
	}
	for _, b := range taken {
		p.put(b)
	}
	if len(p.buffers) != maxSpareBuffers {
		t.Errorf("%d spare buffers", len(p.buffers))
	}
	other, err := p.get(2 * pageSize)
	if err != nil || len(other) != dataOffset+2*pageSize || len(p.buffers) != maxSpareBuffers {
		t.Errorf("of another size: %d bytes, %v, %d spare", len(other), err, len(p.buffers))
	}
	freeBuffer(other)
	for n := maxSpareBuffers; n > 0; n-- {
		b, err := p.get(pageSize)
		if err != nil || b[0] != 1 {
			t.Errorf("not a spare one: %v", err)
		}
		freeBuffer(b)
	}
}
