package shim_test

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

// TestAckReachesDevice checks that in ack mode a write is in the device when it returns, and in flush mode that it need
// not be.
func TestAckReachesDevice(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		dev := newMemDevice(mib)
		srv := mount(t, mode, dev)
		f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p := bytes.Repeat([]byte{9}, 8192)
		for off := int64(0); off < mib; off += int64(len(p)) {
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			if mode == shim.ModeAck && !bytes.Equal(dev.snapshot()[off:off+int64(len(p))], p) {
				t.Fatalf("the write at %d was acknowledged and is not in the device", off)
			}
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dev.snapshot(), bytes.Repeat([]byte{9}, mib)) {
			t.Fatal("after fsync the device differs")
		}
	})
}

// TestAckNeedsNoFlush checks that in ack mode what is written to a loop device is durable without a flush, and that the
// kernel asks for one once.
func TestAckNeedsNoFlush(t *testing.T) {
	const size = 4 * mib
	dev := newMemDevice(size)
	var flushes atomic.Int64
	srv := mount(t, shim.ModeAck, dev, func(c *shim.Config) {
		c.Observe = func(op shim.Op, _ time.Duration, _ error) {
			if op == shim.OpFlush {
				flushes.Add(1)
			}
		}
	})
	name, loop := attachLoop(t, srv.Path(), size, shim.ModeAck)
	direct := openDirect(t, name)
	defer direct.Close()
	for i := range 20 {
		before := dev.flushCount()
		if _, err := direct.WriteAt(alignedBlock("durable"), int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if dev.flushCount() == before {
			t.Fatal("a write was answered before it was made durable")
		}
		if i < 10 {
			continue
		}
		if err := loop.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if n := flushes.Load(); n > 1 {
		t.Errorf("%d flushes reached the server", n)
	}
}

// TestAbortHurtsNobody aborts the connection of one of several volumes under load: the others go on.
func TestAbortHurtsNobody(t *testing.T) {
	const volumes, size = 4, mib
	var servers []*shim.Server
	var loops []*blockdev.LoopDevice
	for range volumes {
		srv := mount(t, shim.ModeAck, newMemDevice(size))
		_, loop := attachLoop(t, srv.Path(), size, shim.ModeAck)
		servers, loops = append(servers, srv), append(loops, loop)
	}
	var written [volumes]atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, loop := range loops {
		wg.Go(func() {
			for n := int64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				_, err := loop.WriteAt(make([]byte, 4096), n%(size/4096)*4096)
				if err == nil {
					err = loop.Flush()
				}
				if err != nil {
					if i > 0 {
						t.Errorf("volume %d: %v", i, err)
					}
					return
				}
				written[i].Add(1)
			}
		})
	}
	more := func(from int) {
		for i := from; i < volumes; i++ {
			for before, deadline := written[i].Load(), time.Now().Add(time.Minute); written[i].Load() < before+10; {
				if time.Now().After(deadline) {
					t.Fatalf("volume %d stands still", i)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	more(0)
	servers[0].Abort()
	<-servers[0].Done()
	if err := servers[0].Err(); !errors.Is(err, shim.ErrAborted) {
		t.Error(err)
	}
	more(1)
	close(stop)
	wg.Wait()
}
