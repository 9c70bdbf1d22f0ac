package volumes

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	writerBlock  = 16 << 10
	writerBlocks = 256
)

// writer writes blocks to a file or device, past the page cache, and reads back what it wrote earlier, until it is
// stopped.
type writer struct {
	done    atomic.Int64 // writes
	stopped atomic.Bool
	ended   chan error
	content [writerBlocks]uint64 // what each block holds, 0 for nothing; the writer's until it has ended
}

func fillBlock(data []byte, block int, version uint64) {
	for at := 0; at < len(data); at += 16 {
		binary.BigEndian.PutUint64(data[at:], version)
		binary.BigEndian.PutUint64(data[at+8:], uint64(block)<<32|uint64(at))
	}
}

func (s *sites) startWriter(path string) *writer {
	s.t.Helper()
	seed := rand.Uint64()
	s.t.Logf("seed of the writer: %d", seed)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_DIRECT, 0o600)
	s.must(err)
	// aligned
	memory, err := unix.Mmap(-1, 0, 3*writerBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	s.must(err)
	w := &writer{ended: make(chan error, 1)}
	go func() {
		err := w.run(f, memory, rand.New(rand.NewPCG(seed, 0)))
		w.ended <- err
		f.Close()
		_ = unix.Munmap(memory)
	}()
	s.t.Cleanup(func() { w.stopped.Store(true) })
	return w
}

func (w *writer) run(f *os.File, memory []byte, random *rand.Rand) error {
	data, got, want := memory[:writerBlock], memory[writerBlock:2*writerBlock], memory[2*writerBlock:3*writerBlock]
	for version := uint64(1); !w.stopped.Load(); version++ {
		block := random.IntN(writerBlocks)
		fillBlock(data, block, version)
		if _, err := f.WriteAt(data, int64(block)*writerBlock); err != nil {
			return err
		}
		w.content[block] = version
		if version%4 == 0 {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		w.done.Add(1)
		block = random.IntN(writerBlocks)
		if w.content[block] == 0 {
			continue
		}
		if _, err := f.ReadAt(got, int64(block)*writerBlock); err != nil {
			return err
		}
		if fillBlock(want, block, w.content[block]); !bytes.Equal(got, want) {
			return fmt.Errorf("block %d does not hold version %d", block, w.content[block])
		}
	}
	return f.Sync()
}

// more waits for so many further writes.
func (s *sites) more(w *writer, n int64) {
	s.t.Helper()
	s.until("further writes", func() bool {
		select {
		case err := <-w.ended:
			s.t.Fatalf("the writer ended after %d writes: %v", w.done.Load(), err)
		default:
		}
		if n <= 0 {
			return true
		}
		before := w.done.Load()
		time.Sleep(5 * time.Millisecond)
		n -= w.done.Load() - before
		return n <= 0
	})
}

// change changes the volume at A as a CO does, which calls again where it got no answer.
func (s *sites) change(v *testsite.Volume, mutable map[string]string) {
	s.t.Helper()
	var err error
	s.until(fmt.Sprintf("an answer to %v", mutable), func() bool {
		err = s.A.Modify(s.ctx, v, mutable)
		return status.Code(err) != codes.Unavailable
	})
	s.must(err)
}

// until polls for as long as the test may take.
func (s *sites) until(what string, ok func() bool) {
	s.t.Helper()
	for !ok() {
		if s.ctx.Err() != nil {
			s.t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// check reads what the writer wrote.
func (s *sites) check(w *writer, path string) {
	s.t.Helper()
	f, err := os.Open(path)
	s.must(err)
	defer f.Close()
	got, want := make([]byte, writerBlock), make([]byte, writerBlock)
	for block, version := range w.content {
		if version == 0 {
			continue
		}
		_, err := f.ReadAt(got, int64(block)*writerBlock)
		s.must(err)
		if fillBlock(want, block, version); !bytes.Equal(got, want) {
			s.t.Errorf("%s: block %d does not hold version %d", path, block, version)
		}
	}
}

// metric returns the value of the series of a metric of A's replicator with a label's value; false if there is none.
func (s *sites) metric(name, label, value string) (float64, bool) {
	s.t.Helper()
	client := http.Client{Timeout: 30 * time.Second}
	response, err := client.Get("http://" + s.A.Config.ReplicatorMetrics + "/metrics")
	s.must(err)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		series, number, _ := strings.Cut(lines.Text(), "} ")
		if !strings.HasPrefix(series, name+"{") || !strings.Contains(series, fmt.Sprintf("%s=%q", label, value)) {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		s.must(err)
		return n, true
	}
	s.must(lines.Err())
	return 0, false
}

func (s *sites) wantMetric(name, label, value string, want float64) {
	s.t.Helper()
	if got, ok := s.metric(name, label, value); !ok || got != want {
		s.t.Errorf("%s{%s=%q} is %v (there: %t), want %v", name, label, value, got, ok, want)
	}
}

// TestModifyUnderLoad changes all that a VolumeAttributesClass can change while a volume is in use and a program writes
// to it and reads back. No change is an I/O error, and each is what status, metrics and health say from then on.
func TestModifyUnderLoad(t *testing.T) {
	for _, o := range []testsite.VolumeOptions{{Name: "ext4", FSType: "ext4"}, {Name: "block", Block: true}} {
		t.Run(o.Name, func(t *testing.T) {
			s := newSites(t)
			const size, own = 64 * mib, "made-by-change"
			o.SizeBytes, o.Parameters = size, testsite.Replicable()
			v, err := s.A.CreateVolume(s.ctx, o)
			s.must(err)
			path, err := s.A.Mount(s.ctx, v)
			s.must(err)
			if !o.Block {
				path = filepath.Join(path, "file")
			}
			w := s.startWriter(path)
			modify := func(mutable map[string]string) {
				t.Helper()
				s.more(w, 20)
				for range 2 { // a repetition changes nothing
					s.change(v, mutable)
				}
				s.more(w, 20)
			}
			wait := func(name, what string, ok func(*sidecarpb.GroupStatus) bool) *sidecarpb.GroupStatus {
				t.Helper()
				g, err := s.A.WaitGroup(s.ctx, name, what, ok)
				s.must(err)
				return g
			}
			member := func(g *sidecarpb.GroupStatus) bool {
				return slices.ContainsFunc(g.GetVolumes(), func(m *sidecarpb.VolumeStatus) bool { return m.GetVolumeId() == v.ID })
			}
			wantHealth := func(has bool, reason string) {
				t.Helper()
				s.until(fmt.Sprintf("condition %s: %t", reason, has), func() bool {
					reasons, err := s.A.Health(s.ctx, v)
					s.must(err)
					return slices.Contains(reasons, reason) == has
				})
			}
			s.more(w, 20)

			// On, in a group that the change makes.
			modify(map[string]string{parameter.KeyReplication: parameter.ReplicationOn,
				parameter.KeyConsistencyGroup: own, parameter.KeyRemote: s.B.Config.Name,
				parameter.KeyJournalSize: "64Mi", parameter.KeyRPOTarget: "1h"})
			if g := wait(own, "streaming",
				testsite.Streaming); !member(g) || g.GetPeer() != s.B.Config.Name ||
				g.GetJournalSizeBytes() != 64*mib || g.GetRpoTargetSeconds() != 3600 {
				t.Errorf("after it was switched on: %v", g)
			}

			// The group's settings, there and back.
			for _, set := range []struct {
				mutable               map[string]string
				journal, target, rate float64
				policy                sidecarpb.JournalFull
			}{
				{map[string]string{parameter.KeyJournalSize: "128Mi",
					parameter.KeyJournalFull: parameter.JournalFullStall, parameter.KeyRPOTarget: "30s",
					parameter.KeyReplicationRate: "8Mi"},
					128 << 20, 30, 8 << 20, sidecarpb.JournalFull_JOURNAL_FULL_STALL},
				{map[string]string{parameter.KeyJournalSize: "64Mi",
					parameter.KeyJournalFull: parameter.JournalFullTrack, parameter.KeyRPOTarget: "0",
					parameter.KeyReplicationRate: "0"},
					64 << 20, 0, 0, sidecarpb.JournalFull_JOURNAL_FULL_TRACK},
			} {
				modify(set.mutable)
				g, err := s.A.Group(s.ctx, own)
				s.must(err)
				if float64(g.GetJournalSizeBytes()) != set.journal || g.GetRpoTargetSeconds() != set.target ||
					float64(g.GetShipBytesPerSecond()) != set.rate || g.GetJournalFull() != set.policy {
					t.Errorf("after %v: %v", set.mutable, g)
				}
				s.wantMetric("slipstream_group_journal_size_bytes", "group", own, set.journal)
				s.wantMetric("slipstream_group_rpo_target_seconds", "group", own, set.target)
				s.wantMetric("slipstream_group_ship_limit_bytes_per_second", "group", own, set.rate)
			}

			// Without a peer the copy lags beyond whatever the target is, and beyond none.
			s.must(s.B.Replicator().Kill())
			modify(map[string]string{parameter.KeyRPOTarget: "10ms"})
			wantHealth(true, health.ReasonReplicationLagging)
			modify(map[string]string{parameter.KeyRPOTarget: "0"})
			wantHealth(false, health.ReasonReplicationLagging)
			s.must(s.B.Start(s.ctx))
			wait(own, "streaming", testsite.Streaming)

			s.limitUnderLoad(w, v, modify)

			// The order decides how the volume is attached.
			err = s.A.Modify(s.ctx, v, map[string]string{parameter.KeyOrder: parameter.OrderFlush})
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "unstage it first") {
				t.Errorf("another order in use: %v", err)
			}
			modify(map[string]string{parameter.KeyOrder: parameter.OrderAck}) // as it is

			// Into a group that was there, off, and on again.
			modify(map[string]string{parameter.KeyConsistencyGroup: group})
			wait(group, "streaming with the volume", func(g *sidecarpb.GroupStatus) bool {
				return testsite.Streaming(g) && member(g)
			})
			modify(map[string]string{parameter.KeyReplication: parameter.ReplicationOff})
			if g := wait(group, "there", func(*sidecarpb.GroupStatus) bool { return true }); member(g) {
				t.Errorf("after replication was switched off: %v", g)
			}
			if _, there := s.metric("slipstream_group_volume_info", "volume", v.ID); there {
				t.Error("after replication was switched off the metrics still have the volume in a group")
			}
			modify(map[string]string{parameter.KeyReplication: parameter.ReplicationOn, parameter.KeyConsistencyGroup: group})
			wait(group, "streaming with the volume again", func(g *sidecarpb.GroupStatus) bool {
				return testsite.Streaming(g) && member(g)
			})
			s.wantMetric("slipstream_group_volume_info", "volume", v.ID, 1)

			stop := func(w *writer) {
				t.Helper()
				s.more(w, 20)
				w.stopped.Store(true)
				s.must(<-w.ended)
				s.check(w, path)
				s.must(s.A.Unmount(s.ctx, v))
				s.settle()
				s.sameImages(v, size)
			}
			stop(w)
			// What was refused above is done now, and is how it is attached from now on.
			s.change(v, map[string]string{parameter.KeyOrder: parameter.OrderFlush})
			_, err = s.A.Mount(s.ctx, v)
			s.must(err)
			s.check(w, path)
			stop(s.startWriter(path))
			t.Logf("%d writes under the changes", w.done.Load())
		})
	}
}

// limitUnderLoad sets limits of the volume's I/O and takes them back. What they held up is counted.
func (s *sites) limitUnderLoad(w *writer, v *testsite.Volume, modify func(map[string]string)) {
	s.t.Helper()
	const iops = 100
	delayed := func() float64 {
		s.t.Helper()
		n, ok := s.metric("slipstream_volume_delayed_operations_total", "volume", v.ID)
		if !ok {
			s.t.Fatal("the metrics have no operations that were delayed")
		}
		return n
	}
	if n := delayed(); n != 0 {
		s.t.Errorf("%v operations were delayed before there were limits", n)
	}
	for _, set := range []struct {
		mutable    map[string]string
		iops, rate float64
	}{
		{map[string]string{parameter.KeyIOPS: strconv.Itoa(iops)}, iops, 0},
		{map[string]string{parameter.KeyIOPS: "0", parameter.KeyIOBytes: "1Mi"}, 0, 1 << 20},
	} {
		before := delayed()
		s.change(v, set.mutable)
		begin, from := time.Now(), w.done.Load()
		s.more(w, 50)
		// No more was done than was granted: what was under way at either end, a tenth of a second saved up, and the
		// time's worth. Each write is an operation and a block.
		done, granted := float64(w.done.Load()-from), set.iops
		if granted == 0 {
			granted = set.rate / writerBlock
		}
		if granted = granted*(time.Since(begin).Seconds()+0.1) + 5; done > granted {
			s.t.Errorf("%v: %v writes, %v were granted", set.mutable, done, granted)
		}
		if n := delayed(); n <= before {
			s.t.Errorf("%v: %v operations were delayed before, %v after", set.mutable, before, n)
		}
		s.wantMetric("slipstream_volume_limit_operations_per_second", "volume", v.ID, set.iops)
		s.wantMetric("slipstream_volume_limit_bytes_per_second", "volume", v.ID, set.rate)
	}
	modify(map[string]string{parameter.KeyIOBytes: "0"})
	before := delayed()
	s.more(w, 50)
	if n := delayed(); n != before {
		s.t.Errorf("%v operations were delayed when the limits were taken back, %v later", before, n)
	}
	s.wantMetric("slipstream_volume_limit_operations_per_second", "volume", v.ID, 0)
	s.wantMetric("slipstream_volume_limit_bytes_per_second", "volume", v.ID, 0)
}
