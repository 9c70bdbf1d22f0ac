package shim

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockdevtest"
)

// TestTurns runs random requests through limits that change, on a clock of its own: no request is overtaken or gets
// more than was granted, and none waits while there is enough for the next one.
func TestTurns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q turns
		now := int64(time.Hour)
		var limits Limits
		var put, got uint64
		// What was granted since the last change, and taken of it.
		var since, bytes, operations int64
		change := func(l Limits) {
			q.set(now, l)
			limits, since, bytes, operations = l, now, 0, 0
		}
		served := func(n int64) { bytes, operations = bytes+n, operations+1 }
		within := func(rate, taken, slack int64) bool {
			return rate == 0 || float64(taken) <= float64(rate)*(float64(now-since)+float64(limitBurst))/1e9+float64(slack)
		}
		const largest = 1 << 20
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"request", "request", "time", "change"}).Draw(t, "step") {
			case "request":
				n := rapid.Int64Range(0, largest).Draw(t, "bytes")
				if q.take(now, n) {
					if put != got {
						t.Fatalf("request %d was served before %d", put, got)
					}
					got++
					served(n)
				} else {
					r := heldRequest{bytes: n}
					r.header.unique = put
					q.put(r)
				}
				put++
			case "time":
				now += rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "pass")
			case "change":
				change(Limits{BytesPerSecond: rapid.SampledFrom([]int64{0, 1 << 20, 1 << 30}).Draw(t, "bytes a second"),
					OperationsPerSecond: rapid.SampledFrom([]int64{0, 10, 10000}).Draw(t, "operations a second")})
			}
			ready, next := q.due(now)
			for _, r := range ready {
				if r.header.unique != got {
					t.Fatalf("request %d was served before %d", r.header.unique, got)
				}
				got++
				served(r.bytes)
			}
			if (next > 0) != (put > got) {
				t.Fatalf("%d requests wait, for %v", put-got, next)
			}
			// The first in line was charged before a change, which counts its debt and not its tokens.
			if !within(limits.BytesPerSecond, bytes, largest) || !within(limits.OperationsPerSecond, operations, 1) {
				t.Fatalf("%+v: %d bytes and %d operations in %v", limits, bytes, operations, time.Duration(now-since))
			}
			if limits == (Limits{}) && next > 0 {
				t.Fatalf("without limits a request waits for %v", next)
			}
		}
		// Asked when it says, it serves all that is left.
		for last := uint64(0); put > got; last = got {
			_, next := q.due(now)
			now += int64(next)
			ready, _ := q.due(now)
			if got += uint64(len(ready)); got == last {
				t.Fatalf("after %v no request is served, %d wait", next, put-got)
			}
		}
	})
}

// TestHeldReplies: what waits for its turn holds up neither a flush nor a discard, is done all the same, and is
// answered when the server stops.
func TestHeldReplies(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	dev := blockdevtest.NewMemDevice(1 << 20)
	s := testServer(dev)
	s.fd = fds[0]
	s.SetLimits(Limits{OperationsPerSecond: 1}) // less than one is saved up, so the first waits already
	read := make([]byte, readInSize)
	native.PutUint32(read[16:], pageSize)
	data := make([]byte, pageSize)
	data[0] = 7
	discard := make([]byte, fallocateInSize)
	native.PutUint64(discard[16:], pageSize)
	native.PutUint64(discard[8:], 512<<10)
	native.PutUint32(discard[24:], fallocPunchHole|fallocKeepSize)
	const writes, reads = 20, 20
	buf, err := newBuffer(maxWriteBytes + gatherBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer freeBuffer(buf)
	r := reader{pool: &s.readers, s: s, gathered: gathered{buf: buf}}
	send := func(frame []byte) {
		t.Helper()
		if err := unix.Sendto(fds[1], frame, 0, nil); err != nil {
			t.Fatal(err)
		}
		if served, ok := r.drain(false); served != 1 || !ok {
			t.Fatalf("served %d, %t", served, ok)
		}
	}
	reply := func() []byte {
		t.Helper()
		b := make([]byte, 2*pageSize)
		n, err := unix.Read(fds[1], b)
		if err != nil {
			t.Fatalf("no reply: %v", err)
		}
		return b[:n]
	}
	for i := range uint64(writes) {
		send(request(opWrite, 100+i, fileNode, dataBody(i*pageSize, pageSize, data)))
	}
	for i := range uint64(reads) {
		send(request(opRead, 200+i, fileNode, read))
	}
	send(request(opFsync, 300, fileNode, make([]byte, 16)))
	send(request(opFallocate, 301, fileNode, discard))
	answered := map[uint64]bool{}
	take := func() uint64 {
		t.Helper()
		b := reply()
		unique := native.Uint64(b[8:])
		errno, body := checkReply(t, b, unique)
		if errno != 0 || unique >= 200 && unique < 300 && (len(body) != pageSize || body[0] != 7) {
			t.Errorf("request %d: %v, %d bytes", unique, errno, len(body))
		}
		if answered[unique] {
			t.Errorf("request %d is answered twice", unique)
		}
		answered[unique] = true
		return unique
	}
	for !answered[300] || !answered[301] {
		take() // on a slow machine one of the writes may have had its turn
	}
	if n := len(answered); n > writes {
		t.Errorf("%d requests were answered, at one operation a second", n)
	}
	for i := range int64(writes) {
		got := make([]byte, 1)
		if _, err := dev.ReadAt(got, i*pageSize); err != nil || got[0] != 7 {
			t.Errorf("write %d, whose reply waits, is not done: %v, %v", i, got, err)
		}
	}
	s.limiter.close()
	for len(answered) < writes+reads+2 {
		take()
	}
	if _, err := unix.Read(fds[1], make([]byte, 2*pageSize)); err != unix.EAGAIN {
		t.Errorf("one reply more: %v", err)
	}
	if s.limiter.hold(1, func(*heldRequest) {}) {
		t.Error("a stopped server holds a reply")
	}
}
